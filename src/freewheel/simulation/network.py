"""The network of a simulation: what a message takes from a worker to the servers, and back.

A message passes two things: the worker's own link, and, where there is one, the link that the servers share.
Both carry it packet by packet at the same time, so it is through when the slower of the two is done with it;
adding the two times, as if a message were stored whole in between, would double the time over two equal
links. Each link carries its messages one after the other, and both directions at once (full duplex).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from freewheel.simulation import checks
from freewheel.simulation.draws import Stream, generator, in_blocks
from freewheel.simulation.station import Station

_GIGABIT = 125e6  # bytes per second


@dataclass(frozen=True)
class Network:
    """How fast messages travel.

    Args:
        latency_s: seconds that every message takes, whatever its size.
        bandwidth_bytes_per_s: of each worker's own link, each way.
        shared_bytes_per_s: of the link at the servers that all workers share, each way.
        jitter: how much the latency differs between messages: it is multiplied by a log-normal factor of
            median 1 whose logarithm has this standard deviation. 0: not at all. The messages of one worker
            stay in order; ``reorder`` in :mod:`freewheel.simulation.faults` lets them overtake.

    Raises:
        ConfigurationError: a negative latency or jitter, or a bandwidth that is not above zero.

    Example:
        >>> network = Network(latency_s=0.001, bandwidth_bytes_per_s=1e6, shared_bytes_per_s=4e6)
        >>> network.seconds(500_000)
        0.501
        >>> Network().instant, network.instant
        (True, False)
    """

    latency_s: float = 0.0
    bandwidth_bytes_per_s: float = math.inf
    shared_bytes_per_s: float = math.inf
    jitter: float = 0.0

    def __post_init__(self) -> None:
        seconds = checks.at_least_zero("latency_s", self.latency_s, "0.005 is 5 ms")
        object.__setattr__(self, "latency_s", seconds)
        for name in ("bandwidth_bytes_per_s", "shared_bytes_per_s"):
            remedy = "125e6 is 1 Gbit/s; leave it out for no limit"
            rate = checks.positive(name, getattr(self, name), remedy, infinite=True)
            object.__setattr__(self, name, rate)
        jitter = checks.at_least_zero("jitter", self.jitter, "0.3 lets the latency differ by some 30 %")
        object.__setattr__(self, "jitter", jitter)

    @classmethod
    def lan(cls) -> Network:
        """A local network: 0.1 ms, 10 Gbit/s for each worker and for the servers."""
        return cls(1e-4, 10 * _GIGABIT, 10 * _GIGABIT)

    @classmethod
    def wan(cls) -> Network:
        """Machines far apart: 50 ms that differ by some 20 %, 100 Mbit/s, 1 Gbit/s at the servers."""
        return cls(0.05, 0.1 * _GIGABIT, _GIGABIT, jitter=0.2)

    def seconds(self, size: int) -> float:
        """What a message of so many bytes takes where nothing else is under way and nothing jitters."""
        return self.latency_s + size / min(self.bandwidth_bytes_per_s, self.shared_bytes_per_s)

    @property
    def instant(self) -> bool:
        """Whether every message arrives at the time it is sent."""
        return self.latency_s == 0 and math.isinf(min(self.bandwidth_bytes_per_s, self.shared_bytes_per_s))

    @property
    def describe(self) -> str:
        """The settings, for the report."""
        if self.instant:
            return "instant"
        parts = [f"{self.latency_s * 1e3:g} ms", f"{_rate(self.bandwidth_bytes_per_s)} a worker"]
        parts.append(f"{_rate(self.shared_bytes_per_s)} at the servers")
        return ", ".join(parts + ([f"jitter {self.jitter:g}"] if self.jitter else []))

    def latencies(self, seed: int, worker: int) -> Callable[[], float]:
        """The latency of one message of a worker after the other."""
        latency, jitter = self.latency_s, self.jitter
        if not (latency and jitter):
            return lambda: latency
        draws = generator(seed, Stream.LATENCY, worker)
        return in_blocks(lambda size: latency * np.exp(jitter * draws.standard_normal(size)))


@final
class Links:
    """The links of one run, with what passed over them.

    Args:
        network: how fast they are.
        workers: how many workers there are.
        seed: of the jitter.

    Attributes:
        sent: bytes that each worker sent.
        received: bytes that each worker received.
        inbound: the shared link towards the servers.
        outbound: the shared link away from them.

    Example:
        >>> links = Links(Network(latency_s=1.0, bandwidth_bytes_per_s=100.0, shared_bytes_per_s=200.0), 3)
        >>> [links.send(worker, 0.0, 200) for worker in (0, 1, 2)]
        [3.0, 3.0, 4.0]
        >>> links.sent, links.inbound.busy_s
        ([200, 200, 200], 3.0)
    """

    __slots__ = ("_down", "_latency", "_own_s", "_shared_s", "_up", "inbound", "outbound", "received", "sent")

    def __init__(self, network: Network, workers: int, seed: int = 0) -> None:
        self._own_s, self._shared_s = 1 / network.bandwidth_bytes_per_s, 1 / network.shared_bytes_per_s
        self._up = [_Lane() for _ in range(workers)]
        self._down = [_Lane() for _ in range(workers)]
        self._latency = [network.latencies(seed, worker) for worker in range(workers)]
        self.inbound, self.outbound = Station(), Station()
        self.sent, self.received = [0] * workers, [0] * workers

    def send(self, worker: int, now: float, size: int) -> float:
        """A message of so many bytes leaves a worker; returns when the servers have it.

        Call it in the order of the times.
        """
        self.sent[worker] += size
        return self._carry(self._up[worker], self.inbound, worker, now, size)

    def receive(self, worker: int, now: float, size: int) -> float:
        """A message of so many bytes leaves the servers for a worker; returns when the worker has it.

        Call it in the order of the times.
        """
        self.received[worker] += size
        return self._carry(self._down[worker], self.outbound, worker, now, size)

    def _carry(self, own: _Lane, shared: Station, worker: int, now: float, size: int) -> float:
        # The latency comes after the links, in both directions: equal latencies change no order, and unequal
        # ones would need an event of its own for the arrival at the shared link.
        if size:
            done = shared.serve(now, size * self._shared_s, size)
            if self._own_s:
                mine = own.serve(now, size * self._own_s, size)
                done = mine if mine > done else done
        else:  # a request takes no time of the links, but waits for what goes before it
            done = max(now, own.free_at, shared.free_at)
        arrival = done + self._latency[worker]()
        if arrival < own.arrived:
            return own.arrived
        own.arrived = arrival
        return arrival


class _Lane(Station):
    """One direction of a worker's link. Jitter changes no order in it: it is one connection, as TCP's are."""

    __slots__ = ("arrived",)

    def __init__(self) -> None:
        super().__init__()
        self.arrived = 0.0  # when the last message was there


def _rate(bytes_per_s: float) -> str:
    if math.isinf(bytes_per_s):
        return "unlimited"
    value, unit = bytes_per_s * 8, "bit/s"
    for larger in ("kbit/s", "Mbit/s", "Gbit/s"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:g} {unit}"

"""Messages between workers and the shards of a server, on a virtual clock.

A push is one message a shard, a pull a request and an answer a shard. Each waits for the links that it passes
and for the shard that serves it. Where nothing takes time, everything happens at once, without events.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import final

from torch import Tensor

from freewheel.events import Traffic
from freewheel.server import Receipt, Server
from freewheel.shards import Shard
from freewheel.simulation import Agenda, Convoy, FaultPlan, Links, Network, ServerCost, Station
from freewheel.update import Update

Served = Callable[[tuple[int, ...], float], object]
"""Called when the last shard is read, with the versions and the time at which the worker has them all."""

Booked = Callable[[Receipt | None], object]
"""Called when the update was applied or dropped; None when its message was lost."""

BYTES = 4  # of a float32


@final
class Wire:
    """Carries pulls and pushes.

    Args:
        agenda: of the simulation.
        server: at the other end.
        network: how fast messages travel.
        cost: what a shard does for a message.
        faults: what becomes of pushes.
        seed: of the jitter.
    """

    def __init__(
        self, agenda: Agenda, server: Server, network: Network, cost: ServerCost, faults: FaultPlan, seed: int
    ) -> None:
        self.links = Links(network, server.workers, seed)
        self.stations = [Station() for _ in server.shards]
        self._agenda = agenda
        self._server = server
        self._cost = cost
        self._faults = faults
        self._instant = network.instant and cost.free
        self._sizes = [BYTES * shard.numel for shard in server.shards]
        self._size_of_all = sum(self._sizes)
        self._pushes = [0] * server.workers
        self._arrivals = [[Convoy(agenda) for _ in server.shards] for _ in range(server.workers)]
        self._services = [Convoy(agenda) for _ in server.shards]

    # --- pulling ---

    def pull(self, worker: int, target: Tensor | None, served: Served, asked: bool = False) -> None:
        """Copies the weights, shard by shard, at the time at which each shard serves the request.

        Args:
            worker: who pulls.
            target: where to copy; None where the worker will read the live weights when it is served.
            served: what follows.
            asked: the servers have the request already.
        """
        shards = self._server.shards
        if self._instant:
            self._count(worker)
            served(tuple([self._read(shard, target) for shard in shards]), self._agenda.now)
            return
        answers = _Answers(len(shards), served)
        for shard in shards:
            now = self._agenda.now
            arrival = now if asked else self.links.send(worker, now, 0)
            self._arrivals[worker][shard.index].at(
                arrival, partial(self._ask, worker, shard, target, answers)
            )

    def _count(self, worker: int) -> None:
        for station, size in zip(self.stations, self._sizes, strict=True):
            station.jobs += 1
            station.bytes += size
            self.links.received[worker] += size

    def _ask(self, worker: int, shard: Shard, target: Tensor | None, answers: _Answers) -> None:
        size = self._sizes[shard.index]
        answer = partial(self._answer, worker, shard, target, answers)
        self._serve(shard, self._cost.pull_seconds(size), size, answer)

    def _answer(self, worker: int, shard: Shard, target: Tensor | None, answers: _Answers) -> None:
        version = self._read(shard, target)
        arrival = self.links.receive(worker, self._agenda.now, self._sizes[shard.index])
        answers.add(shard.index, version, arrival)

    def _read(self, shard: Shard, target: Tensor | None) -> int:
        if target is not None:
            return self._server.pull_shard(shard, target)
        return self._server.version if len(self._server.shards) == 1 else shard.version

    # --- pushing ---

    def push(self, update: Update, booked: Booked) -> None:
        """Sends an update, which the server applies, shard by shard, when each serves it."""
        worker = update.worker
        number, self._pushes[worker] = self._pushes[worker], self._pushes[worker] + 1
        fate = self._faults.push(worker, number)
        if fate.lost:
            self._server.lose(update)
            for shard in self._server.shards:  # on its way it takes the links' time all the same
                self.links.send(worker, self._agenda.now, self._size(update, shard))
            booked(None)
            return
        if fate.noise and update.gradients:
            # Autograd may hand over one element for many (an expanded tensor), which cannot be written to.
            update.gradients = [None if g is None else g.clone() for g in update.gradients]
            self._faults.corrupt(update.gradients, worker, number, fate.noise)
        copies = [update] + [_copy(update) for _ in range(fate.copies - 1)]
        for copy in copies:
            self._send(copy, fate.delay_s, booked if copy is update else _nothing)

    def _send(self, update: Update, delay_s: float, booked: Booked) -> None:
        shards, now = self._server.shards, self._agenda.now
        if self._instant and not delay_s:
            self.count(update)
            booked(self._server.push(update))
            return
        delivery = _Delivery(self._server, update, booked)
        for shard in shards:
            arrival = self.links.send(update.worker, now, self._size(update, shard)) + delay_s
            arrived = partial(self._arrive, shard, update, delivery)
            self._arrivals[update.worker][shard.index].at(arrival, arrived)

    def count(self, update: Update) -> None:
        """Counts the bytes of a push that takes no time."""
        for shard in self._server.shards:
            size = self._size(update, shard)
            self.links.sent[update.worker] += size
            self.stations[shard.index].jobs += 1
            self.stations[shard.index].bytes += size

    def _arrive(self, shard: Shard, update: Update, delivery: _Delivery) -> None:
        size = self._size(update, shard)
        self._serve(shard, self._cost.push_seconds(size), size, partial(delivery.apply, shard))

    def _serve(self, shard: Shard, seconds: float, size: int, action: Callable[[], object]) -> None:
        """Does something when the shard has served everything that came before, and this."""
        now, services = self._agenda.now, self._services[shard.index]
        done = self.stations[shard.index].serve(now, seconds, size)
        if done > now or services.ends_at(done):
            services.at(done, action)
        else:
            action()

    def traffic(self, worker_busy_s: list[float]) -> Traffic:
        """What was carried, and how long who was busy.

        Args:
            worker_busy_s: seconds of computing of every worker.
        """
        return Traffic(
            worker_bytes_sent=list(self.links.sent),
            worker_bytes_received=list(self.links.received),
            worker_busy_s=worker_busy_s,
            shard_bytes=[station.bytes for station in self.stations],
            shard_busy_s=[station.busy_s for station in self.stations],
            shard_wait_s=[station.waited_s for station in self.stations],
            link_busy_s=[self.links.inbound.busy_s, self.links.outbound.busy_s],
            faults=dict(sorted(self._faults.fired.items())),
        )

    def _size(self, update: Update, shard: Shard) -> int:
        if update.rejected:
            return 0
        whole = self._sizes[shard.index]
        if update.wire_bytes is None:
            return whole
        return round(update.wire_bytes * whole / self._size_of_all)


@final
class _Answers:
    """Collects the shards' answers to one pull."""

    def __init__(self, count: int, served: Served) -> None:
        self._versions = [0] * count
        self._missing = count
        self._arrival = 0.0
        self._served = served

    def add(self, shard: int, version: int, arrival: float) -> None:
        self._versions[shard] = version
        self._missing -= 1
        self._arrival = max(self._arrival, arrival)
        if not self._missing:
            self._served(tuple(self._versions), self._arrival)


@final
class _Delivery:
    """One update on its way into the shards."""

    def __init__(self, server: Server, update: Update, booked: Booked) -> None:
        self._server = server
        self._update = update
        self._booked = booked
        self._missing = len(server.shards)
        # Rounds, and a single shard, take an update when all of it is there.
        self._at_once = server.gathers or self._missing == 1
        self._over = False
        self._staleness = 0

    def apply(self, shard: Shard) -> None:
        """The shard has served its part."""
        first, self._missing = self._missing == len(self._server.shards), self._missing - 1
        if self._over:
            return
        if self._at_once:
            if not self._missing:
                self._booked(self._server.push(self._update))
            return
        receipt = self._server.admit(self._update) if first else None
        if receipt is not None:
            self._over = True
            self._booked(receipt)
            return
        self._staleness = max(self._staleness, self._server.apply(shard, self._update))
        if not self._missing:
            status = self._server.settled(self._update)
            self._server.finish(self._update, status)
            self._booked(Receipt(status, self._staleness))


def _copy(update: Update) -> Update:
    """The same message once more. It shares its gradients: what is not new is dropped unread."""
    return replace(update, gradients=list(update.gradients))


def _nothing(receipt: Receipt | None) -> None:
    """What follows the second copy of a message."""

"""What a calibration found: step times, staleness and server costs, and the simulated engine they make."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from functools import cached_property

from freewheel.engines.costs import ServerSeconds
from freewheel.engines.simulated import Simulated
from freewheel.errors import ConfigurationError
from freewheel.simulation import Network, ServerCost, measured, per_worker
from freewheel.simulation.checks import whole

LEAST = 0.05  # of a step that is computing, whatever the server's costs were measured to be


@dataclass(frozen=True)
class Measurement:
    """Steps of some workers within one machine.

    Attributes:
        workers: how many ran at the same time.
        step_seconds: of all their steps after the warm-up: from one push of a worker to its next, so it holds
            pulling, computing, pushing, and what the workers took from each other.
        samples_per_step: examples, on average.
        mean_staleness: of their updates.
        by_worker: the same step_seconds, worker by worker, in the order of time; empty if not known.
    """

    workers: int
    step_seconds: tuple[float, ...] = field(repr=False)
    samples_per_step: float
    mean_staleness: float
    by_worker: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    @cached_property
    def mean_step_s(self) -> float:
        """Mean seconds of a step."""
        return statistics.fmean(self.step_seconds)

    @property
    def samples_per_second(self) -> float:
        """Examples per second of all workers together."""
        return self.workers * self.samples_per_step / self.mean_step_s

    @property
    def turnaround(self) -> float:
        """The share of a step that lies between a push and the next pull, 0 to 1.

        Of equal workers, each sees one push of every other one a step, but for those that come while it is
        between push and pull itself: so the mean staleness is (W - 1)(1 - share).
        """
        if self.workers == 1 or not math.isfinite(self.mean_staleness):
            return 0.0
        return min(max(1 - self.mean_staleness / (self.workers - 1), 0.0), 1.0)


@dataclass(frozen=True)
class Calibration:
    """What :func:`freewheel.calibrate` found.

    Attributes:
        measurements: one for each number of workers, ascending.
        server: seconds of a push and of a pull of the whole model.
        weights: how many are trained.
        cores: of this machine.
        method: the name of the method that was measured.

    Example:
        >>> one = Measurement(1, (0.010, 0.012), 16.0, 0.0)
        >>> two = Measurement(2, (0.012, 0.014), 16.0, 0.9)
        >>> found = Calibration((one, two), ServerSeconds(0.001, 0.0005), 10_000, 2, "stale_synchronous")
        >>> found.engine(2).times.describe, round(found.engine(2).turnaround, 6)
        ('measured(2 samples, median 0.013)', 0.1)
        >>> found.engine(8, machines=True).times.describe
        'measured(2 samples, median 0.0095)'
    """

    measurements: tuple[Measurement, ...]
    server: ServerSeconds
    weights: int
    cores: int
    method: str

    def at(self, workers: int) -> Measurement:
        """The measurement of this number of workers, or of the nearest; of two as near, the larger."""
        return min(self.measurements, key=lambda one: (abs(one.workers - workers), -one.workers))

    def engine(self, workers: int, *, network: Network | None = None, machines: bool = False) -> Simulated:
        """A simulated engine with the measured times.

        Args:
            workers: how many it will run.
            network: between workers and server; it implies machines of their own.
            machines: every worker has a machine like this one to itself, and so has the server: steps take
                what one worker took, less the server's part, and pushes and pulls queue at the server. Else
                the workers are threads of this machine: steps take what they took with that many (or the
                nearest number of) workers, and longer where there are more workers than cores.

        Raises:
            ConfigurationError: no number of workers, or something that is no network.
        """
        if whole("workers", workers, "1 or more") < 1:
            raise ConfigurationError(f"`workers` must be >= 1, got {workers}")
        if network is not None and not isinstance(network, Network):
            raise ConfigurationError(
                f"`network` must be a freewheel.simulation.Network, got {network!r}; leave it out for none"
            )
        if machines or (network is not None and not network.instant):
            return self._apart(network or Network())
        return self._together(workers)

    def _apart(self, network: Network) -> Simulated:
        push, pull = self.server
        times = [max(one - push - pull, LEAST * one) for one in self.at(1).step_seconds]
        cost = ServerCost(seconds_per_push=push, seconds_per_pull=pull)
        return Simulated(measured(times), network, cost)

    def _together(self, workers: int) -> Simulated:
        found = self.at(workers)
        if found.workers == workers and all(found.by_worker) and found.by_worker:
            own = {worker: measured(one, in_order=True) for worker, one in enumerate(found.by_worker)}
            return Simulated(per_worker(own, measured(found.step_seconds)), turnaround=found.turnaround)
        stretch = max(1.0, workers / max(found.workers, self.cores))
        times = measured(stretch * one for one in found.step_seconds)
        return Simulated(times, turnaround=found.turnaround)

    @property
    def describe(self) -> str:
        """The findings in a few lines."""
        lines = [
            f"{one.workers} worker{'s' * (one.workers > 1)}: {one.samples_per_second:,.0f} samples/s,"
            f" {1e3 * one.mean_step_s:.3g} ms a step ({len(one.step_seconds):,} measured),"
            f" mean staleness {one.mean_staleness:.2f}"
            for one in self.measurements
        ]
        costs = f"push {1e3 * self.server.push:.3g} ms, pull {1e3 * self.server.pull:.3g} ms"
        return "\n".join([*lines, f"server: {costs} for {self.weights:,} weights"])

    def __str__(self) -> str:
        """The findings."""
        return self.describe

"""Unequal workers: models of their own, slow machines, machines that pause."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from freewheel.errors import ConfigurationError
from freewheel.simulation import checks
from freewheel.simulation.draws import Stream, generator
from freewheel.simulation.times import Sampler, StepTimes, as_times


@dataclass(frozen=True)
class PerWorker(StepTimes):
    """See :func:`per_worker`."""

    models: tuple[tuple[int, StepTimes], ...]
    default: StepTimes

    def __post_init__(self) -> None:
        remedy = "its keys are workers, which count from 0"
        models = tuple(
            (checks.whole("models", worker, remedy), as_times(model, "models"))
            for worker, model in self.models
        )
        object.__setattr__(self, "models", models)
        object.__setattr__(self, "default", as_times(self.default, "default"))

    def sampler(self, seed: int, worker: int) -> Sampler:
        """That of the worker's own model."""
        return dict(self.models).get(worker, self.default).sampler(seed, worker)

    @property
    def describe(self) -> str:
        """The default, and how many are different."""
        return f"per_worker({len(self.models)} of their own, default {self.default.describe})"

    @property
    def named(self) -> frozenset[int]:
        """The workers with models of their own, and whom the models name."""
        names = [frozenset(worker for worker, _ in self.models), self.default.named]
        return frozenset().union(*names, *(model.named for _, model in self.models))


@dataclass(frozen=True)
class Slow(StepTimes):
    """See :func:`slow`."""

    model: StepTimes
    factors: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_times(self.model, "model"))
        remedy = "4.0 makes a machine four times slower"
        checked = tuple(
            (
                checks.whole("factors", worker, "its keys are workers, which count from 0"),
                checks.positive("factors", factor, remedy),
            )
            for worker, factor in self.factors
        )
        if not checked:
            raise ConfigurationError("`factors` names no worker; give for instance {0: 4.0}")
        object.__setattr__(self, "factors", checked)

    def sampler(self, seed: int, worker: int) -> Sampler:
        """The model's, multiplied: the very same draws, so that a fast and a slow fleet can be compared."""
        draw, factor = self.model.sampler(seed, worker), dict(self.factors).get(worker, 1.0)
        return draw if factor == 1.0 else lambda now: factor * draw(now)

    @property
    def describe(self) -> str:
        """The model, how many are slow, and how slow the slowest is."""
        most = max(factor for _, factor in self.factors)
        return f"slow({self.model.describe}, {len(self.factors)} of them up to {most:g} times)"

    @property
    def named(self) -> frozenset[int]:
        """The slow workers, and whom the model names."""
        return self.model.named | {worker for worker, _ in self.factors}


@dataclass(frozen=True)
class Pauses(StepTimes):
    """See :func:`pauses`."""

    model: StepTimes
    every_s: float
    for_s: float
    workers: frozenset[int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", as_times(self.model, "model"))
        every = checks.positive("every_s", self.every_s, "it is the time from one pause to the next")
        length = checks.positive("for_s", self.for_s, "leave pauses() out for none")
        if length >= every:
            raise ConfigurationError(
                f"`for_s` must be less than `every_s`, got {length:g} and {every:g}; a pause begins every"
                " `every_s` seconds, and there must be time to work in between"
            )
        object.__setattr__(self, "every_s", every)
        object.__setattr__(self, "for_s", length)
        object.__setattr__(self, "workers", checks.worker_set(self.workers))

    def sampler(self, seed: int, worker: int) -> Sampler:
        """The model's time as work, stretched over the pauses."""
        draw = self.model.sampler(seed, worker)
        if self.workers is not None and worker not in self.workers:
            return draw
        every, length = self.every_s, self.for_s
        busy = every - length
        first = every * float(generator(seed, Stream.PAUSES, worker).random())

        def paused(now: float) -> float:
            # Periods begin with the pause. Each begun after the first adds one pause to the step; a step
            # that ends just when a pause begins is not held up by it, hence the ceiling and not the floor.
            position = (now - first) % every
            waiting = max(0.0, length - position)
            work = draw(now)
            done = max(0.0, position - length)
            return waiting + work + length * max(0, math.ceil((done + work) / busy) - 1)

        return paused

    @property
    def describe(self) -> str:
        """The model and the pauses."""
        who = "" if self.workers is None else f", {len(self.workers)} of them"
        return f"pauses({self.model.describe}, every {self.every_s:g} s for {self.for_s:g} s{who})"

    @property
    def named(self) -> frozenset[int]:
        """The workers that pause, and whom the model names."""
        return self.model.named | (self.workers or frozenset())


def per_worker(models: Mapping[int, StepTimes], default: StepTimes) -> PerWorker:
    """Workers with models of their own.

    Args:
        models: by worker.
        default: of all the others.

    Raises:
        ConfigurationError: a key that is no worker, or a value that is no model.

    Example:
        >>> from freewheel.simulation import constant
        >>> fleet = per_worker({0: constant(0.5)}, default=constant(0.1))
        >>> [fleet.sampler(seed=0, worker=worker)(0.0) for worker in (0, 1)]
        [0.5, 0.1]
    """
    return PerWorker(tuple(models.items()), default)


def slow(model: StepTimes, factors: Mapping[int, float]) -> Slow:
    """Slow machines.

    Args:
        model: of an ordinary machine.
        factors: by worker: 4.0 takes four times as long, 0.5 half as long.

    Raises:
        ConfigurationError: no worker, a key that is none, or a factor that is not above zero.

    Example:
        >>> from freewheel.simulation import constant
        >>> fleet = slow(constant(0.1), {7: 4.0})
        >>> [fleet.sampler(seed=0, worker=worker)(0.0) for worker in (0, 7)]
        [0.1, 0.4]
    """
    return Slow(model, tuple(factors.items()))


def pauses(model: StepTimes, every_s: float, for_s: float, workers: Iterable[int] | None = None) -> Pauses:
    """Machines that stand still now and then (another job, garbage collection); a step in a pause waits.

    A worker works the share ``1 - for_s / every_s`` of the time. Pauses come at regular times; when a
    worker's first begins is drawn, so that not all pause at once. Pauses at random times would only add
    spread, which `lognormal` has.

    Args:
        model: of the work itself.
        every_s: seconds from the beginning of one pause to that of the next.
        for_s: seconds that a pause lasts, less than `every_s`.
        workers: who pauses; all of them if left out.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> from freewheel.simulation import constant
        >>> draw = pauses(constant(1.0), every_s=10.0, for_s=2.0).sampler(seed=0, worker=0)
        >>> now = 0.0
        >>> for _ in range(80):  # of one second each, in ten periods of eight seconds of work
        ...     now += draw(now)
        >>> round(now / 10)
        10
    """
    return Pauses(model, every_s, for_s, workers)  # type: ignore[arg-type]  # it makes a set of them

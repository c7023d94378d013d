"""How long a worker's step takes: models of computing time, drawn from (seed, worker, step) alone."""

from __future__ import annotations

import itertools
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from freewheel.errors import ConfigurationError
from freewheel.simulation import checks
from freewheel.simulation.draws import Stream, generator, in_blocks

Sampler = Callable[[float], float]
"""``(now) -> seconds`` of the next step of one worker, which begins now."""


class StepTimes(ABC):
    """Base of all models of computing time: immutable."""

    @abstractmethod
    def sampler(self, seed: int, worker: int) -> Sampler:
        """The durations of one worker's steps, one after the other; two workers share no random number.

        Args:
            seed: of the run, >= 0.
            worker: which, from 0.

        Raises:
            ConfigurationError: a negative seed.
        """

    @property
    @abstractmethod
    def describe(self) -> str:
        """The name and settings, short also for a thousand workers, for the report."""

    @property
    def named(self) -> frozenset[int]:
        """The workers that it names, which a run should have."""
        return frozenset()


@dataclass(frozen=True)
class Constant(StepTimes):
    """See :func:`constant`."""

    seconds: float

    def __post_init__(self) -> None:
        seconds = checks.positive("seconds", self.seconds, "0.01 is 10 ms")
        object.__setattr__(self, "seconds", seconds)

    def sampler(self, seed: int, worker: int) -> Sampler:
        """Always the same."""
        return lambda now: self.seconds

    @property
    def describe(self) -> str:
        """The call that makes it."""
        return f"constant({self.seconds:g})"


@dataclass(frozen=True)
class LogNormal(StepTimes):
    """See :func:`lognormal`."""

    median_s: float
    sigma: float

    def __post_init__(self) -> None:
        median = checks.positive("median_s", self.median_s, "0.01 is 10 ms")
        sigma = checks.at_least_zero("sigma", self.sigma, "0.3 lets steps differ by some 30 %")
        object.__setattr__(self, "median_s", median)
        object.__setattr__(self, "sigma", sigma)

    def sampler(self, seed: int, worker: int) -> Sampler:
        """Independent draws."""
        draws = generator(seed, Stream.TIMES, worker)
        return in_blocks(lambda size: self.median_s * np.exp(self.sigma * draws.standard_normal(size)))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        return f"lognormal({self.median_s:g}, {self.sigma:g})"


@dataclass(frozen=True)
class Measured(StepTimes):
    """See :func:`measured`."""

    samples: tuple[float, ...]
    in_order: bool = False

    def __post_init__(self) -> None:
        remedy = "leave out what was not measured"
        seconds = tuple(
            checks.positive("samples", one, remedy) for one in checks.items("samples", self.samples)
        )
        if not seconds:
            raise ConfigurationError("`samples` must hold at least one measured time, got none")
        object.__setattr__(self, "samples", seconds)

    def sampler(self, seed: int, worker: int) -> Sampler:
        """Draws from the samples with replacement, or goes through them round and round."""
        if self.in_order:  # all workers begin at the same part of what was measured
            start = int(generator(seed, Stream.TIMES).random() * len(self.samples))
            round_and_round = itertools.cycle(self.samples[start:] + self.samples[:start])
            return lambda now: next(round_and_round)
        draws, known = generator(seed, Stream.TIMES, worker), np.array(self.samples)
        return in_blocks(lambda size: known[(draws.random(size) * len(known)).astype(np.intp)])

    @property
    def describe(self) -> str:
        """How many there are, and their median; not all of them."""
        order = ", in order" if self.in_order else ""
        return f"measured({len(self.samples)} samples, median {statistics.median(self.samples):g}{order})"


def constant(seconds: float) -> Constant:
    """Every step takes the same.

    Args:
        seconds: > 0.

    Raises:
        ConfigurationError: not above zero, or not finite.

    Example:
        >>> constant(0.01).sampler(seed=0, worker=0)(0.0)
        0.01
    """
    return Constant(seconds)


def lognormal(median_s: float, sigma: float) -> LogNormal:
    r"""Steps whose logarithm is normal: ``median exp(sigma z)``, with mean ``median exp(sigma^2 / 2)``.

    Args:
        median_s: half of the steps are faster, in seconds.
        sigma: standard deviation of the logarithm; 0 is constant, 0.3 a busy machine, 1 a very uneven one.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> draw = lognormal(0.01, sigma=0.5).sampler(seed=0, worker=3)
        >>> again = lognormal(0.01, sigma=0.5).sampler(seed=0, worker=3)
        >>> [draw(0.0) for _ in range(3)] == [again(0.0) for _ in range(3)]
        True
    """
    return LogNormal(median_s, sigma)


def measured(samples: Iterable[float], in_order: bool = False) -> Measured:
    """Steps as they were measured: each is one of the samples, drawn with replacement (the bootstrap).

    What makes neighbouring steps alike (a machine that heats up) is lost, unless they are taken in order.

    Args:
        samples: seconds, each > 0.
        in_order: take one after the other, round and round, from a place that the seed of the run gives. It
            is the same share of the samples for all workers, so what was measured of several at the same time
            comes at the same time.

    Raises:
        ConfigurationError: no samples, or one that is not above zero and finite.

    Example:
        >>> draw = measured([0.010, 0.012, 0.030]).sampler(seed=0, worker=0)
        >>> {draw(0.0) for _ in range(100)} == {0.010, 0.012, 0.030}
        True

    References:
        Efron 1979, "Bootstrap methods: another look at the jackknife", section 2.
    """
    return Measured(samples, in_order)  # type: ignore[arg-type]  # it makes a tuple of them


def as_times(model: object, name: str = "times") -> StepTimes:
    """The model itself, or a constant one where a number of seconds was given.

    Raises:
        ConfigurationError: neither.

    Example:
        >>> as_times(0.01)
        Constant(seconds=0.01)
    """
    if isinstance(model, StepTimes):
        return model
    if isinstance(model, int | float) and not isinstance(model, bool):
        return Constant(model)
    raise ConfigurationError(
        f"`{name}` must be a model of computing time such as constant(0.01) or lognormal(0.01, 0.3), or a"
        f" number of seconds; got {model!r}"
    )

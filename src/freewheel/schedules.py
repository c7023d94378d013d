"""Learning rates as functions of the samples seen, which no batch size or number of workers changes.

A schedule is called with the number of samples applied so far and, where the run has one, the number it plans
to apply in all: ``schedule(samples, planned)``. Where `total` is left out it means the planned number. The
alternative, to bind schedules to a run before it starts, would need every rule that wraps another to take
part; one more argument costs nothing. A function of one's own takes the samples alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

from freewheel.errors import ConfigurationError

Rate = float | Callable[[int], float]
"""What a rule takes as its learning rate: a number, a schedule, or a function of the samples seen."""


class Schedule:
    """Base of all schedules: an immutable function of the samples seen."""

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate after so many samples.

        Args:
            samples: examples applied so far, >= 0; beyond the end the last value holds.
            planned: examples of the whole run; needed only where the schedule names no total of its own.

        Raises:
            ConfigurationError: `planned` is needed and None.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        """The call that makes it."""
        name = "".join("_" * (i > 0 and c.isupper()) + c.lower() for i, c in enumerate(type(self).__name__))
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return f"{name}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"


S = TypeVar("S", bound=Rate)


@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """See :func:`constant`."""

    lr: float

    def __post_init__(self) -> None:
        _keep(self, lr=at_least_zero("lr", self.lr))

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate."""
        return self.lr


@dataclass(frozen=True, repr=False)
class Step(Schedule):
    """See :func:`step`."""

    lr: float
    every: int | float
    factor: float

    def __post_init__(self) -> None:
        _keep(self, lr=at_least_zero("lr", self.lr), every=_length("every", self.every))
        _keep(self, factor=number("factor", self.factor, 0.0, math.inf, "0.1 divides the rate by ten"))

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate after so many samples."""
        return self.lr * self.factor ** (samples // _span(self.every, planned, self))


@dataclass(frozen=True, repr=False)
class Cosine(Schedule):
    """See :func:`cosine`."""

    lr: float
    total: int | None = None
    final: float = 0.0

    def __post_init__(self) -> None:
        _keep(self, lr=at_least_zero("lr", self.lr), total=_total(self.total))
        _keep(self, final=at_least_zero("final", self.final))

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate after so many samples."""
        progress = min(1.0, samples / _span(self.total, planned, self))
        share = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.lr * share + self.final * (1.0 - share)  # in this form both ends are exact


@dataclass(frozen=True, repr=False)
class Annealed(Schedule):
    """See :func:`annealed`."""

    lr: float

    def __post_init__(self) -> None:
        _keep(self, lr=at_least_zero("lr", self.lr))

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate after so many samples."""
        if planned is None:
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, samples / planned)))


@dataclass(frozen=True, repr=False)
class Linear(Schedule):
    """See :func:`linear`."""

    lr: float
    total: int | None = None
    final: float = 0.0

    def __post_init__(self) -> None:
        _keep(self, lr=at_least_zero("lr", self.lr), total=_total(self.total))
        _keep(self, final=at_least_zero("final", self.final))

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate after so many samples."""
        progress = min(1.0, samples / _span(self.total, planned, self))
        return self.lr * (1.0 - progress) + self.final * progress


@dataclass(frozen=True, repr=False)
class Warmup(Schedule):
    """See :func:`warmup`."""

    schedule: Schedule
    samples: int | float
    start: float = 0.0

    def __post_init__(self) -> None:
        _keep(self, samples=_length("samples", self.samples))
        _keep(self, start=number("start", self.start, 0.0, 1.0, "it is a share of the rate", closed=True))

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The rate after so many samples."""
        progress = min(1.0, samples / _span(self.samples, planned, self))
        return self.schedule(samples, planned) * (self.start + (1.0 - self.start) * progress)


@dataclass(frozen=True, repr=False)
class Custom(Schedule):
    """A function of the user's own. Its values are checked: nothing stands between it and the weights."""

    function: Callable[[int], float]

    def __call__(self, samples: int, planned: int | None = None) -> float:
        """The function's value.

        Raises:
            ConfigurationError: it is negative, not finite, or no number.
        """
        rate = self.function(samples)
        return at_least_zero(f"lr({samples})", rate)

    def __repr__(self) -> str:
        """The function's name; its address would differ from run to run."""
        return getattr(self.function, "__qualname__", type(self.function).__qualname__).rpartition(".")[2]


def constant(lr: float) -> Constant:
    """The same rate for ever.

    Args:
        lr: the rate, >= 0.

    Example:
        >>> constant(0.1)(1_000)
        0.1
    """
    return Constant(lr)


def step(lr: float, every: int | float, factor: float = 0.1) -> Step:
    """Multiplies the rate by a factor every so many samples: ``lr * factor ** (samples // every)``.

    Args:
        lr: the first rate, >= 0.
        every: samples, or a float between 0 and 1: a share of the run's planned samples.
        factor: >= 0.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> [step(1.0, every=100, factor=0.5)(samples) for samples in (0, 99, 100, 200)]
        [1.0, 1.0, 0.5, 0.25]
        >>> step(1.0, every=0.5, factor=0.5)(60, planned=100)
        0.5
    """
    return Step(lr, every, factor)


def cosine(lr: float, total: int | None = None, final: float = 0.0) -> Cosine:
    r"""Half a cosine from one rate to another: ``final + (lr - final) (1 + cos(pi samples / total)) / 2``.

    Args:
        lr: the first rate, >= 0.
        total: samples until the end, >= 1; None means the run's planned samples.
        final: the last rate, which holds from there on.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> [round(cosine(1.0, total=100)(samples), 3) for samples in (0, 50, 100, 150)]
        [1.0, 0.5, 0.0, 0.0]
        >>> cosine(1.0)(100, planned=100)
        0.0

    References:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    return Cosine(lr, total, final)


def annealed(lr: float) -> Annealed:
    """Half a cosine down to zero where the run plans its samples, else the same rate for ever.

    The default of the methods: a run that ends after a time or at a target only has nothing to anneal over.

    Args:
        lr: the first rate, >= 0.

    Example:
        >>> annealed(0.1)(50, planned=100), annealed(0.1)(50)
        (0.05, 0.1)
    """
    return Annealed(lr)


def linear(lr: float, total: int | None = None, final: float = 0.0) -> Linear:
    """A straight line from one rate to another.

    Args:
        lr: the first rate, >= 0.
        total: samples until the end, >= 1; None means the run's planned samples.
        final: the last rate, which holds from there on.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> [linear(1.0, total=100)(samples) for samples in (0, 25, 100, 150)]
        [1.0, 0.75, 0.0, 0.0]
    """
    return Linear(lr, total, final)


def warmup(schedule: Rate, samples: int | float, start: float = 0.0) -> Warmup:
    """Another schedule, scaled by a factor that grows from ``start`` to 1 over the first samples.

    The inner schedule is not shifted: it counts from the first sample too, and so keeps its own end.

    Args:
        schedule: the schedule, rate or function to scale.
        samples: length of the warm-up, or a float between 0 and 1: a share of the run's planned samples.
        start: the first factor, 0 to 1.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> [warmup(0.5, samples=100)(samples) for samples in (0, 50, 100, 150)]
        [0.0, 0.25, 0.5, 0.5]

    References:
        Goyal et al. 2017, arXiv:1706.02677, section 2.2.
    """
    return Warmup(as_schedule(schedule, "schedule"), samples, start)


def resolve(schedule: S, planned: int | None) -> S:
    """The same schedule with everything that depends on the run's plan written out, for a record of it.

    Args:
        schedule: any; numbers, functions and complete schedules come back as they are.
        planned: samples of the whole run, or None where that is not known.

    Raises:
        ConfigurationError: the schedule depends on the plan, and there is none.

    Example:
        >>> resolve(warmup(cosine(0.1), samples=0.05), planned=60_000)
        warmup(schedule=cosine(lr=0.1, total=60000, final=0.0), samples=3000, start=0.0)
    """
    if not isinstance(schedule, Schedule):
        return schedule
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(schedule):  # type: ignore[arg-type]
        value = getattr(schedule, field.name)
        if field.name in ("total", "every", "samples"):
            changes[field.name] = _span(value, planned, schedule)
        elif isinstance(value, Schedule):
            changes[field.name] = resolve(value, planned)
    return dataclasses.replace(schedule, **changes)  # type: ignore[type-var]


def as_schedule(rate: Rate | Schedule, name: str = "lr") -> Schedule:
    """A rate in any of its forms as a schedule.

    Args:
        rate: a number, a schedule, or a function of the samples seen.
        name: what an error calls it.

    Raises:
        ConfigurationError: none of these, or a negative or non-finite number.

    Example:
        >>> as_schedule(0.1), as_schedule(lambda samples: 1 / (1 + samples))(3)
        (constant(lr=0.1), 0.25)
    """
    if isinstance(rate, Schedule):
        return rate
    if callable(rate):
        return Custom(rate)
    return Constant(at_least_zero(name, rate, "give a float such as 0.1, or a schedule such as cosine(0.1)"))


def at_least_zero(name: str, value: object, remedy: str = "give a float such as 0.1") -> float:
    """A finite number >= 0 as a float, or a ConfigurationError that names the argument."""
    return number(name, value, 0.0, math.inf, remedy)


def number(name: str, value: object, low: float, high: float, remedy: str, closed: bool = False) -> float:
    """A number in [low, high), or [low, high] when closed, as a float.

    Raises:
        ConfigurationError: it is not; the message names the argument, the value and the remedy.
    """
    result = _real(value)
    if low <= result < high or (closed and result == high):
        return result
    bound = "finite" if high == math.inf else f"{'<=' if closed else '<'} {high:g}"
    raise ConfigurationError(f"`{name}` must be a number >= {low:g} and {bound}, got {value!r}; {remedy}")


def _keep(schedule: Schedule, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(schedule, name, value)


def _real(value: object) -> float:
    """The number as a float; NaN, which no comparison lets through, for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return float(value)


def _total(total: object) -> int | None:
    if total is None:
        return None
    samples = _real(total)
    if 1 <= samples < math.inf and samples.is_integer():
        return int(samples)
    raise ConfigurationError(
        f"`total` must be a whole number of samples >= 1, got {total!r}; leave it out for the whole run"
    )


def _length(name: str, value: object) -> int | float:
    """A number of samples as an int, or a share of the run as a float between 0 and 1."""
    samples = _real(value)
    if 0 < samples < 1:
        return samples
    if 1 <= samples < math.inf and samples.is_integer():
        return int(samples)
    raise ConfigurationError(
        f"`{name}` must be a whole number of samples >= 1, or a share of the run in (0, 1), got {value!r}"
    )


def _span(length: int | float | None, planned: int | None, schedule: Schedule) -> int:
    """A length in samples, with shares of the run (None is all of it) worked out."""
    if type(length) is int:
        return length
    if planned is None:
        raise ConfigurationError(
            f"{schedule!r} is a share of the run, but this run has no planned number of samples; give the run"
            " `epochs` or `max_samples`, or the schedule its length in samples"
        )
    return max(1, planned if length is None else round(length * planned))

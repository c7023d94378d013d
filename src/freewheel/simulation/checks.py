"""Checks of arguments, with errors that name the argument, the value that came and the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real

from freewheel.errors import ConfigurationError


def positive(name: str, value: object, remedy: str, *, infinite: bool = False) -> float:
    """A number > 0 as a float; infinite only where that is allowed.

    Raises:
        ConfigurationError: it is none.
    """
    number = _real(value)
    if 0 < number < math.inf or (infinite and number == math.inf):
        return number
    finite = "" if infinite else " and finite"
    raise ConfigurationError(f"`{name}` must be a number > 0{finite}, got {value!r}; {remedy}")


def at_least_zero(name: str, value: object, remedy: str) -> float:
    """A finite number >= 0 as a float.

    Raises:
        ConfigurationError: it is none.
    """
    number = _real(value)
    if 0 <= number < math.inf:
        return number
    raise ConfigurationError(f"`{name}` must be a number >= 0 and finite, got {value!r}; {remedy}")


def share(name: str, value: object) -> float:
    """A number from 0 to 1 as a float.

    Raises:
        ConfigurationError: it is none.
    """
    number = _real(value)
    if 0 <= number <= 1:
        return number
    raise ConfigurationError(f"`{name}` must be a share from 0 to 1, got {value!r}; 0.1 means 10 %")


def whole(name: str, value: object, remedy: str) -> int:
    """A whole number >= 0 as an int.

    Raises:
        ConfigurationError: it is none.
    """
    number = -1 if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if number >= 0:
        return number
    raise ConfigurationError(f"`{name}` must be a whole number >= 0, got {value!r}; {remedy}")


def items(name: str, value: object) -> Iterable[object]:
    """The items of anything but a string.

    Raises:
        ConfigurationError: it has none.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return value
    raise ConfigurationError(f"`{name}` must be a list of numbers, got {value!r}; put it into brackets")


def worker_set(value: Iterable[int] | None) -> frozenset[int] | None:
    """Some workers, or None for all of them.

    Raises:
        ConfigurationError: none are named, or something is no number of a worker.
    """
    if value is None:
        return None
    remedy = "workers count from 0"
    named = frozenset(whole("workers", worker, remedy) for worker in items("workers", value))
    if not named:
        raise ConfigurationError("`workers` names none; leave it out for all of them")
    return named


def check_workers(what: str, named: Iterable[int], workers: int) -> None:
    """That a run has all the workers that a description of it names.

    Raises:
        ConfigurationError: it has not.

    Example:
        >>> check_workers("slow", [0, 7], workers=8)
    """
    highest = max(named, default=-1)
    if highest >= workers:
        raise ConfigurationError(
            f"`{what}` names worker {highest}, but there are {workers}, numbered from 0 to {workers - 1}"
        )


def _real(value: object) -> float:
    """The number as a float; NaN, which no comparison lets through, for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    return float(value)

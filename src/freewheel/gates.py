"""Gates: may this worker start its next step, given everybody's progress? Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from freewheel.errors import ConfigurationError

Progress = Sequence[int]
"""Finished steps of every active worker; a worker that has nothing left to do counts as infinitely far."""

NEVER_WAITED_FOR = 2**62  # the progress of a worker that has retired


class Gate(NamedTuple):
    """Who may start.

    Attributes:
        may_start: ``(worker, progress) -> bool``.
        describe: the name and settings, for the report.
        open: True when nobody ever waits, so that an engine need not ask.
        slowest: True when it looks at the slowest worker only, so that an engine need not ask again before
            that one has moved.
    """

    may_start: Callable[[int, Progress], bool]
    describe: str
    open: bool = False
    slowest: bool = False


def free() -> Gate:
    """Nobody ever waits (Hogwild!; Recht et al. 2011, arXiv:1106.5730).

    Example:
        >>> free().may_start(0, [10, 0])
        True
    """
    return Gate(lambda worker, progress: True, "free()", open=True)


def bounded(bound: int) -> Gate:
    """A worker may be at most ``bound`` steps ahead of the slowest (stale synchronous; Ho et al. 2013).

    Args:
        bound: number of steps, >= 0.

    Raises:
        ConfigurationError: a negative bound.

    Example:
        >>> bounded(2).may_start(0, [3, 1]), bounded(2).may_start(0, [4, 1])
        (True, False)
    """
    if not isinstance(bound, int) or isinstance(bound, bool) or bound < 0:
        raise ConfigurationError(
            f"`bound` must be a whole number >= 0, got {bound!r}; use free() for no limit"
        )
    return Gate(
        lambda worker, progress: progress[worker] - min(progress) <= bound, f"bounded({bound})", slowest=True
    )


def barrier() -> Gate:
    """All workers take each step together (bulk synchronous).

    Example:
        >>> barrier().may_start(0, [1, 0]), barrier().may_start(1, [1, 0])
        (False, True)
    """
    return Gate(lambda worker, progress: progress[worker] <= min(progress), "barrier()", slowest=True)


def warm_start(steps: int, gate: Gate) -> Gate:
    """The first worker takes some steps alone before the others begin (Dean et al. 2012, section 4.1).

    Args:
        steps: of the first worker, >= 0.
        gate: what holds then.

    Raises:
        ConfigurationError: a negative number.

    Example:
        >>> gate = warm_start(10, free())
        >>> gate.may_start(0, [3, 0]), gate.may_start(1, [3, 0]), gate.may_start(1, [10, 0])
        (True, False, True)
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ConfigurationError(
            f"`warm_start` must be a whole number of steps >= 0, got {steps!r}; 0 lets all begin at once"
        )

    def may_start(worker: int, progress: Progress) -> bool:
        return (worker == 0 or progress[0] >= steps) and gate.may_start(worker, progress)

    return Gate(may_start, f"warm_start({steps}) > {gate.describe}")

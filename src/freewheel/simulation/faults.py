"""What can go wrong in a simulated run, as data; a :class:`FaultPlan` says when it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from freewheel.simulation import checks

_WORKERS = "workers count from 0"
_STEPS = "the steps of a worker count from 0"


@dataclass(frozen=True)
class Die:
    """See :func:`die`."""

    worker: int
    step: int
    back_after_s: float | None = None

    def __post_init__(self) -> None:
        _keep(self, worker=checks.whole("worker", self.worker, _WORKERS))
        _keep(self, step=checks.whole("step", self.step, _STEPS))
        if self.back_after_s is not None:
            remedy = "leave it out for a worker that never comes back"
            _keep(self, back_after_s=checks.at_least_zero("back_after_s", self.back_after_s, remedy))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        back = "" if self.back_after_s is None else f", back_after_s={self.back_after_s:g}"
        return f"die({self.worker}, {self.step}{back})"


@dataclass(frozen=True)
class Hang:
    """See :func:`hang`."""

    worker: int
    step: int
    for_s: float

    def __post_init__(self) -> None:
        _keep(self, worker=checks.whole("worker", self.worker, _WORKERS))
        _keep(self, step=checks.whole("step", self.step, _STEPS))
        remedy = "use die() for a worker that hangs for ever"
        _keep(self, for_s=checks.positive("for_s", self.for_s, remedy))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        return f"hang({self.worker}, {self.step}, {self.for_s:g})"


@dataclass(frozen=True)
class Corrupt:
    """See :func:`corrupt`."""

    share: float
    scale: float = 100.0
    workers: frozenset[int] | None = None

    def __post_init__(self) -> None:
        _keep(self, share=checks.share("share", self.share))
        remedy = "100 makes the noise a hundred times as long as the gradient"
        _keep(self, scale=checks.positive("scale", self.scale, remedy))
        _keep(self, workers=checks.worker_set(self.workers))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        who = "" if self.workers is None else f", {len(self.workers)} workers"
        return f"corrupt({self.share:g}, {self.scale:g}{who})"


@dataclass(frozen=True)
class Duplicate:
    """See :func:`duplicate`."""

    share: float

    def __post_init__(self) -> None:
        _keep(self, share=checks.share("share", self.share))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        return f"duplicate({self.share:g})"


@dataclass(frozen=True)
class Reorder:
    """See :func:`reorder`."""

    share: float
    delay_s: float

    def __post_init__(self) -> None:
        _keep(self, share=checks.share("share", self.share))
        remedy = "a message is late by it, so that later ones overtake"
        _keep(self, delay_s=checks.positive("delay_s", self.delay_s, remedy))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        return f"reorder({self.share:g}, {self.delay_s:g})"


@dataclass(frozen=True)
class Lose:
    """See :func:`lose`."""

    share: float

    def __post_init__(self) -> None:
        _keep(self, share=checks.share("share", self.share))

    @property
    def describe(self) -> str:
        """The call that makes it."""
        return f"lose({self.share:g})"


StepFault = Die | Hang
PushFault = Corrupt | Duplicate | Reorder | Lose
Fault = StepFault | PushFault


def die(worker: int, step: int, back_after_s: float | None = None) -> Die:
    """A worker dies while it computes a step: nothing of that step is pushed.

    Args:
        worker: which, from 0.
        step: which of its steps, from 0.
        back_after_s: seconds until it comes back, with nothing but what it pulls then; None: never.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> die(worker=3, step=100, back_after_s=5.0)
        Die(worker=3, step=100, back_after_s=5.0)
    """
    return Die(worker, step, back_after_s)


def hang(worker: int, step: int, for_s: float) -> Hang:
    """A worker takes longer over one step, by so many seconds, and pushes it all the same.

    Args:
        worker: which, from 0.
        step: which of its steps, from 0.
        for_s: seconds on top, > 0.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> hang(worker=0, step=10, for_s=30.0).describe
        'hang(0, 10, 30)'
    """
    return Hang(worker, step, for_s)


def corrupt(share: float, scale: float = 100.0, workers: Iterable[int] | None = None) -> Corrupt:
    """So many of the pushes are replaced by noise: see :func:`~freewheel.simulation.replace_by_noise`.

    Args:
        share: of the pushes, 0 to 1.
        scale: how much longer the noise is than the gradient that it replaces.
        workers: whose pushes; everybody's if left out.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> corrupt(0.1, workers=[2]).workers
        frozenset({2})
    """
    return Corrupt(share, scale, workers)  # type: ignore[arg-type]  # it makes a set of them


def duplicate(share: float) -> Duplicate:
    """So many of the pushes arrive twice, as when an acknowledgement was lost and the worker tried again.

    Args:
        share: of the pushes, 0 to 1.

    Raises:
        ConfigurationError: no share.

    Example:
        >>> duplicate(0.05).describe
        'duplicate(0.05)'
    """
    return Duplicate(share)


def reorder(share: float, delay_s: float) -> Reorder:
    """So many of the pushes are late by some seconds, so that later ones overtake them.

    Args:
        share: of the pushes, 0 to 1.
        delay_s: seconds on top of the network's, > 0.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> reorder(0.2, delay_s=1.0).delay_s
        1.0
    """
    return Reorder(share, delay_s)


def lose(share: float) -> Lose:
    """So many of the pushes never arrive, and nobody is told.

    Args:
        share: of the pushes, 0 to 1.

    Raises:
        ConfigurationError: no share.

    Example:
        >>> lose(0.01).share
        0.01
    """
    return Lose(share)


def _keep(fault: object, **values: object) -> None:
    for name, value in values.items():
        object.__setattr__(fault, name, value)

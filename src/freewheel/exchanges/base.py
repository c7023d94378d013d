"""What an exchange is, and what it is made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from freewheel.conform import conform
from freewheel.params import Entry
from freewheel.rules import Rule, RuleContext, Span
from freewheel.rules.base import restore
from freewheel.update import Update


@dataclass
class Local:
    """A worker's own copy of the weights, and what an exchange may know of the run.

    Attributes:
        flat: ``(n,)`` float32; the worker's module computes with views of it.
        entries: the trainable entries of the layout.
        weights: their views of ``flat``.
        worker: whose it is.
        workers: how many there are.
        planned: examples of the whole run, for schedules; None if unknown.
        pace: this worker's steps so far as a share of the fastest worker's, in (0, 1].
        controls: of the rule of its own descent, see :class:`freewheel.rules.RuleContext`.
    """

    flat: Tensor
    entries: tuple[Entry, ...]
    weights: list[Tensor]
    worker: int = 0
    workers: int = 1
    planned: int | None = None
    pace: Callable[[], float] = field(default=lambda: 1.0)
    controls: Tensor | None = None

    def __post_init__(self) -> None:
        self._strides = [weight.stride() for weight in self.weights]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable entries."""
        return tuple(entry.name for entry in self.entries)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The trainable entries as views of another vector of the same layout."""
        return [entry.view(flat) for entry in self.entries]

    def conform(self, update: Update) -> None:
        """Gives a step's gradients memory of their own, laid out as the weights'."""
        conform(update.gradients, self.weights, self._strides, self.names)


class Descent:
    """A rule that a worker applies to its own weights.

    Args:
        rule: writes the weights.
        local: the worker's.
        moved: what the rule moves in place of the weights, such as a velocity; of the same shapes.
    """

    def __init__(self, rule: Rule, local: Local, moved: list[Tensor] | None = None) -> None:
        weights = local.weights if moved is None else moved
        self._rule = rule
        self._state = rule.init(Span(local.names, weights))
        self._context = RuleContext(
            local.names,
            weights,
            0,
            local.planned,
            worker=local.worker,
            workers=local.workers,
            controls=local.controls,
        )

    def apply(self, update: Update) -> None:
        """One step of the rule; the update's gradients are used up.

        Schedules see this worker's examples times the number of workers: what all have used if they are
        equal.
        """
        self._rule.apply(update, self._state, self._context)
        self._context.samples += update.samples * self._context.workers

    def state(self) -> dict[str, Any]:
        """The rule's state and what its schedule has seen, for a checkpoint."""
        return {"rule": self._state, "samples": self._context.samples}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        restore(self._state, state["rule"])
        self._context.samples = state["samples"]


class Exchange(ABC):
    """The worker's half of a method.

    Attributes:
        target: where the engine copies the server's weights to when a pull is wanted.
        settles: it pushes whenever the model is measured, and not only at the end of the run.
    """

    target: Tensor
    settles: bool = False

    @abstractmethod
    def wants_pull(self) -> bool:
        """Whether the step that begins needs the server's weights."""

    def arrived(self) -> Update | None:
        """The pulled weights are in ``target``; what to push before the step computes."""
        return None

    @abstractmethod
    def offer(self, update: Update) -> Update | None:
        """Takes a step's gradient; what to push now, or None while it is kept on the worker."""

    def flush(self, pull: Callable[[Tensor], None]) -> Update | None:
        """What has not been pushed when the run ends; everybody stands still.

        Args:
            pull: copies the server's weights to a vector, should they be needed.
        """
        return None

    def state(self, statistics: Tensor) -> dict[str, Any]:
        """What the worker holds between two steps, for a checkpoint; tensors are not copied.

        Args:
            statistics: the worker's running statistics, which updates that are kept refer to.
        """
        return {}

    def restore(self, state: Mapping[str, Any], statistics: Tensor) -> None:
        """Holds what was held then; ``statistics`` are the worker's."""
        return


def copy_back(targets: list[Tensor], then: list[Tensor]) -> None:
    """Gives tensors the values that they had in a checkpoint."""
    for target, value in zip(targets, then, strict=True):
        target.copy_(value)


ExchangeMaker = Callable[[Local], Exchange]


def in_the_name_of(update: Update, gradients: list[Tensor | None]) -> Update:
    """A new update in the name of the step that another belongs to."""
    return Update(
        gradients,
        update.entries,
        update.version,
        update.worker,
        update.sequence,
        update.samples,
        incarnation=update.incarnation,
        buffers=update.buffers,
        versions=update.versions,
    )

"""Gradients, one by one or as sums: every step's own, and Downpour's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor

from freewheel.exchanges.base import Descent, Exchange, Local, in_the_name_of
from freewheel.rules import Rule
from freewheel.update import Update, add_share


@final
class Fresh(Exchange):
    """Pulls before and pushes after every step.

    Args:
        local: the worker's weights.
        keeps: hand on the weights that the gradient was computed at, for rules that compensate for delay.
    """

    def __init__(self, local: Local, keeps: bool = False) -> None:
        self.target = local.flat
        self._pulled = local.weights if keeps else None

    def wants_pull(self) -> bool:
        """Always."""
        return True

    def offer(self, update: Update) -> Update:
        """The gradient itself."""
        update.pulled = self._pulled
        return update


@final
class Accruing(Exchange):
    """Pushes sums of gradients, and goes on with weights of its own meanwhile (Downpour SGD).

    Args:
        local: the worker's weights.
        push_every: steps between pushes; the first step pushes, as in Dean et al. 2012, algorithm 7.1.
        pull_every: steps between pulls.
        rule: what the worker does to its own weights with each gradient; None leaves them as they are.
    """

    def __init__(self, local: Local, push_every: int, pull_every: int, rule: Rule | None) -> None:
        self.target = local.flat
        self._local = local
        self._push_every, self._pull_every = push_every, pull_every
        # Weights that are pulled anew before every step need no steps of their own.
        self._descent = Descent(rule, local) if rule is not None and pull_every > 1 else None
        self._step = 0
        self._accrued: Update | None = None

    def wants_pull(self) -> bool:
        """At every ``pull_every``-th step."""
        return self._step % self._pull_every == 0

    def offer(self, update: Update) -> Update | None:
        """Accrues the gradient; at every ``push_every``-th step the sum since the last push."""
        due = self._step % self._push_every == 0
        self._step += 1
        if update.rejected:
            return update
        self._local.conform(update)
        if self._descent is None:
            self._accrue(update, update.gradients)
        else:
            self._accrue(update, [None if g is None else g.clone() for g in update.gradients])
            self._descent.apply(update)
        return self._emit() if due else None

    def flush(self, pull: Callable[[Tensor], None]) -> Update | None:
        """The rest of the sum."""
        return self._emit()

    def state(self, statistics: Tensor) -> dict[str, Any]:
        """Its weights and the rule of its own steps, and the sum since the last push."""
        return {
            "weights": self._local.flat,
            "descent": None if self._descent is None else self._descent.state(),
            "step": self._step,
            "accrued": None if self._accrued is None else self._accrued.state(statistics),
        }

    def restore(self, state: Mapping[str, Any], statistics: Tensor) -> None:
        """Goes on from there."""
        self._local.flat.copy_(state["weights"])
        if self._descent is not None:
            self._descent.restore(state["descent"])
        self._step, accrued = state["step"], state["accrued"]
        self._accrued = None if accrued is None else Update.restored(accrued, statistics)

    def _accrue(self, update: Update, gradients: list[Tensor | None]) -> None:
        if self._accrued is None:
            self._accrued = in_the_name_of(update, gradients)
            self._accrued.version, self._accrued.versions = update.version, update.versions
            return
        add_share(self._accrued.gradients, gradients)
        self._accrued.samples += update.samples

    def _emit(self) -> Update | None:
        update, self._accrued = self._accrued, None
        return update

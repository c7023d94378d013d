"""The distance moved since the last pull: local SGD, parallel SGD, DiLoCo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from freewheel.exchanges.base import Descent, Exchange, Local, in_the_name_of
from freewheel.rules import Rule
from freewheel.update import Update

_COUNTS = ("due", "done", "samples", "used", "fresh")


@final
class Differing(Exchange):
    """Trains weights of its own for some steps and pushes by how much they have moved, as a pseudo-gradient.

    Args:
        local: the worker's weights.
        rule: the inner optimizer; its state stays with the worker.
        steps: between pushes; None pushes only when the model is measured, and never pulls (parallel SGD).
        dynamic: a slower worker takes fewer steps, in proportion to its pace (dynamic local updates).
    """

    def __init__(self, local: Local, rule: Rule, steps: int | None, dynamic: bool = False) -> None:
        self._local = local
        self._descent = Descent(rule, local)
        self.target = local.flat.clone()
        self._origin = local.views(self.target)
        self.settles = steps is None
        self._steps, self._dynamic = steps, dynamic
        self._due = steps
        self._done = 0
        self._samples = self._used = 0  # examples since the last push, and in all
        self._last: Update | None = None
        self._fresh = True

    def wants_pull(self) -> bool:
        """After a push, and at the start."""
        return self._fresh

    def arrived(self) -> None:
        """Begins anew from the pulled weights."""
        self._local.flat.copy_(self.target)
        self._fresh = False
        if self._dynamic and self._steps is not None:
            self._due = max(1, int(self._steps * self._local.pace()))

    def offer(self, update: Update) -> Update | None:
        """Takes a step of its own; after the last one, where it came from minus where it is."""
        if update.rejected:
            return update
        self._local.conform(update)
        self._last = update
        self._samples += update.samples
        self._used += update.samples
        self._done += 1
        self._descent.apply(update)
        return self._emit(update) if self._due is not None and self._done >= self._due else None

    def flush(self, pull: Callable[[Tensor], None]) -> Update | None:
        """How far it has moved since the last push."""
        if self._last is None or not self._done:
            return None
        if not self.settles:
            return self._emit(self._last)
        pull(self.target)
        result = self._difference(self._last)
        result.weight = self._used  # by those since the last average alone, who took no step would not count
        return result

    def state(self, statistics: Tensor) -> dict[str, Any]:
        """Its weights and where they came from, the inner optimizer, and the steps since the last push."""
        last = self._last
        if last is not None:
            last = replace(last, gradients=[])  # used up; the rest names the push that is to come
        return {
            "weights": self._local.flat,
            "origin": self.target,
            "descent": self._descent.state(),
            "last": None if last is None else last.state(statistics),
            **{name: getattr(self, f"_{name}") for name in _COUNTS},
        }

    def restore(self, state: Mapping[str, Any], statistics: Tensor) -> None:
        """Goes on from there."""
        self._local.flat.copy_(state["weights"])
        self.target.copy_(state["origin"])
        self._descent.restore(state["descent"])
        self._last = None if state["last"] is None else Update.restored(state["last"], statistics)
        for name in _COUNTS:
            setattr(self, f"_{name}", state[name])

    def _emit(self, update: Update) -> Update:
        difference = self._difference(update)
        self._done, self._fresh = 0, True
        return difference

    def _difference(self, update: Update) -> Update:
        moved: list[Tensor | None] = list(torch._foreach_sub(self._origin, self._local.weights))
        result = in_the_name_of(update, moved)
        result.samples, self._samples = self._samples, 0
        return result

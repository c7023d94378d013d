"""Rounds: the aggregation of synchronous training, one update of every active worker."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from freewheel.update import Update, add_share


def weighted_mean(updates: list[Update], total: int) -> Update:
    r"""The mean of gradients weighted by shares: :math:`\sum_i (n_i / n) g_i`, in the order given.

    The first update's gradients are overwritten with the result. A gradient that is None counts as zero,
    unless it is None in all of them.

    Args:
        updates: at least one, over the same entries.
        total: :math:`n`, the shares of the whole round: samples, unless an update says otherwise.
    """
    mean = updates[0]
    if mean.share == total:
        return mean  # nobody else has a share
    result: list[Tensor | None] = list(mean.gradients)
    _scale([g for g in result if g is not None], mean.share / total)
    for update in updates[1:]:
        add_share(result, update.gradients, update.share / total)
    mean.gradients = result
    return mean


def _scale(gradients: list[Tensor], factor: float) -> None:
    if gradients:
        torch._foreach_mul_(gradients, factor)


@dataclass
class Round:
    """Collects the pieces of one round and gives out each aggregate as soon as everybody has contributed.

    A piece is complete when every active worker has either pushed it or finished its step without it (its
    batch did not use those weights). Nobody can still be computing with those weights then, so it may be
    applied at once.

    Attributes:
        active: the workers that take part; a worker without further leases leaves.
        needed: how many make a round complete; None is all that are active (no backup workers).
    """

    active: set[int]
    needed: int | None = None
    _pieces: dict[tuple[int, ...], dict[int, Update]] = field(default_factory=dict)
    _closed: dict[int, Update] = field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Who takes part and what has come, for a checkpoint.

        An update may be a piece and the end of its step at once, and stays one object: the updates are listed
        once, and referred to by their place.
        """
        updates: dict[int, Update] = {}

        def place(update: Update) -> int:
            updates.setdefault(id(update), update)
            return list(updates).index(id(update))

        pieces = {
            entries: {worker: place(update) for worker, update in found.items()}
            for entries, found in self._pieces.items()
        }
        closed = {worker: place(update) for worker, update in self._closed.items()}
        return {
            "active": sorted(self.active),
            "pieces": pieces,
            "closed": closed,
            "updates": [update.state() for update in updates.values()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Holds what it held then."""
        updates = [Update.restored(update) for update in state["updates"]]
        self.active = set(state["active"])
        self._pieces = {
            entries: {worker: updates[place] for worker, place in found.items()}
            for entries, found in state["pieces"].items()
        }
        self._closed = {worker: updates[place] for worker, place in state["closed"].items()}

    def add(self, update: Update) -> list[Update]:
        """Takes one piece; returns the aggregates that are complete now."""
        if update.gradients:
            self._pieces.setdefault(update.entries, {})[update.worker] = update
        if update.last:
            self._closed[update.worker] = update
        return self._complete()

    def retire(self, worker: int) -> list[Update]:
        """The worker takes no further part; returns the aggregates that this completes."""
        self.active.discard(worker)
        return self._complete()

    def is_over(self) -> bool:
        """Everybody who is still active has finished the step, and somebody has."""
        return bool(self._closed) and self._suffice(self._closed.keys())

    def __contains__(self, worker: int) -> bool:
        """Whether the worker has finished its step of this round."""
        return worker in self._closed

    def _suffice(self, workers: Set[int]) -> bool:
        enough = self.needed is not None and len(workers) >= self.needed
        return enough or self.active <= workers

    def closed(self) -> list[Update]:
        """The finished steps of this round, in the order of the workers."""
        return [self._closed[worker] for worker in sorted(self._closed)]

    def close(self) -> list[Update]:
        """Begins the next round; returns the finished steps of this one."""
        closed = self.closed()
        self._closed = {}
        return closed

    def _complete(self) -> list[Update]:
        ready = []
        for entries in list(self._pieces):
            pieces = self._pieces[entries]
            if self._suffice(pieces.keys() | self._closed.keys()):
                everybody = {**self._closed, **pieces}
                total = sum(update.share for update in everybody.values() if not update.rejected)
                ready.append(weighted_mean([pieces[worker] for worker in sorted(pieces)], total))
                del self._pieces[entries]
        return ready

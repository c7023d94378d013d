"""What a server does in synchronous training: gathers rounds, applies their means, and books them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from freewheel.book import ERROR, Book
from freewheel.rounds import Round
from freewheel.update import Update


@final
class Gathering:
    """The rounds of a server.

    Args:
        workers: how many there are.
        backup: how many of them a round does not wait for.
        book: where finished rounds are counted.
        apply: applies a mean to the weights; returns the verdict.
        statistics: the shared running statistics, ``(m,)``, which become the mean of the workers'.
    """

    def __init__(
        self, workers: int, backup: int, book: Book, apply: Callable[[Update], str], statistics: Tensor
    ) -> None:
        self._round = Round(set(range(workers)), workers - backup if backup else None)
        self._book = book
        self._apply = apply
        self._statistics = statistics
        self._verdict = "applied"  # of the round under way
        self._waited = 0  # examples of absorbed rounds that the round under way brings with it

    def state(self) -> dict[str, Any]:
        """The round under way, for a checkpoint."""
        return {"round": self._round.state(), "verdict": self._verdict, "waited": self._waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on with the round that was under way then."""
        self._round.restore(state["round"])
        self._verdict, self._waited = state["verdict"], state["waited"]

    def __contains__(self, worker: int) -> bool:
        """The worker has pushed into a round that is not over."""
        return worker in self._round

    def take(self, update: Update) -> None:
        """Takes an update, or one piece of it; applies what it completes."""
        self._advance(self._round.add(update))

    def retire(self, worker: int) -> None:
        """Goes on without this worker."""
        self._advance(self._round.retire(worker))

    def readmit(self, workers: Iterable[int]) -> None:
        """These take part again."""
        self._round.active.update(workers)

    def _advance(self, means: list[Update]) -> None:
        try:
            for mean in means:
                verdict = self._apply_whole(mean) if mean.last else self._apply(mean)
                if verdict != "applied":
                    self._verdict = verdict
        except Exception:
            self._verdict = ERROR
            self._close_if_over()  # or nobody would be let into the next round
            raise
        self._close_if_over()

    def _close_if_over(self) -> None:
        if self._round.is_over():
            status, self._verdict = self._verdict, "applied"
            self._close(status)

    def _apply_whole(self, mean: Update) -> str:
        """A whole round's mean: to rules it is one update of all its examples, in place of all its pushes."""
        good = [update for update in self._round.closed() if not update.rejected]
        others, total = len(good) - 1, sum(update.samples for update in good)
        slot, own = self._book.slots[mean.worker], mean.samples
        mean.samples, slot.context.released = total, others
        verdict = ERROR
        try:
            verdict = self._apply(mean)
        finally:
            if verdict != "absorbed":
                slot.released += slot.context.released - others
            self._waited = mean.samples - total  # of rounds that were absorbed before
            mean.samples, slot.context.released = own, 0
        return verdict

    def _close(self, status: str) -> None:
        """Books the round that is over."""
        closed, book = self._round.close(), self._book
        for update in closed:
            book.slots[update.worker].counts[update.rejected or status] += 1
        applied = [update for update in closed if not update.rejected] if status == "applied" else []
        for update in applied:
            book.add(book.slots[update.worker], update.samples, versions=0)
        if applied:
            book.add(book.slots[closed[0].worker], self._waited, versions=1)
        self._waited = 0
        buffers = [update.buffers for update in applied if update.buffers is not None]
        if buffers:
            self._statistics.copy_(torch.stack(buffers).mean(0) if len(buffers) > 1 else buffers[0])

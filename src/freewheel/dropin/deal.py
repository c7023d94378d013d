"""The batches of one epoch, dealt to whoever asks; those of a dead worker are dealt again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, final


@final
class Deal:
    """Who has which batch.

    Args:
        batches: of the epoch, in their order.

    Example:
        >>> deal = Deal([[3, 1], [0, 2]])
        >>> deal.take(worker=0), deal.take(worker=1), deal.take(worker=1)
        ((0, [3, 1]), (1, [0, 2]), None)
        >>> deal.bury(worker=0), deal.take(worker=1)
        (None, (0, [3, 1]))
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches
        self._left = deque(range(len(batches)))
        self._held: dict[int, int] = {}  # batch -> worker

    def take(self, worker: int) -> tuple[int, Any] | None:
        """The next batch with its number; None if none is left."""
        if not self._left:
            return None
        number = self._left.popleft()
        self._held[number] = worker
        return number, self._batches[number]

    def finish(self, worker: int, number: int) -> None:
        """A batch has been computed on."""
        if self._held.get(number) == worker:
            del self._held[number]
        if not self._held and not self._left:
            self._batches = ()  # an epoch that is over is kept for those who come late, without its data

    def give_back(self, worker: int, number: int) -> None:
        """A batch is to be dealt again."""
        if self._held.get(number) == worker:
            del self._held[number]
            self._left.appendleft(number)

    def bury(self, worker: int) -> None:
        """The worker is gone: all that it held is dealt again, in order."""
        for number in sorted((n for n, holder in self._held.items() if holder == worker), reverse=True):
            self.give_back(worker, number)

"""A worker's signs of life, by which the launcher knows who hangs."""

from __future__ import annotations

from typing import final

from freewheel.engines.processes.board import Board


@final
class Pulse:
    """Writes to the worker's row of the board.

    Within its loop over a shard a worker is to be heard of: it takes a batch, computes, makes a step. A
    forward pass is a sign, too, for a script may evaluate within that loop. Outside of it, it may take its
    time.

    Args:
        board: of the run: ``steps`` are the signs, ``batch`` is 1 within the loop and 0 outside.
        rank: which worker.
    """

    def __init__(self, board: Board, rank: int) -> None:
        self._board = board
        self._rank = rank

    def beat(self) -> None:
        """A sign of life."""
        self._board.steps[self._rank] += 1

    def enter(self) -> None:
        """The worker is within its loop."""
        self._board.batch[self._rank] = 1
        self.beat()

    def leave(self) -> None:
        """It has left it."""
        self._board.batch[self._rank] = 0

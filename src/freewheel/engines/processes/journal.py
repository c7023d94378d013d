"""What finished steps tell, in shared memory: nothing of it is lost when a worker dies."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from freewheel.engines.processes.board import Board
from freewheel.engines.processes.messages import Row
from freewheel.engines.processes.shared import Arena, memory_of

ROW = struct.Struct("=qqqqdqd")
ROWS = 8192  # of one worker that wait to be collected: a tenth of a second of steps of 12 microseconds
FULL_S = 0.001


@final
class Journal:
    """A ring of rows for every worker, who writes; the main process collects them a few times a second.

    Args:
        memory: ``(workers, ROWS * bytes of a row)`` uint8 in an arena.
        board: has for every worker how many rows it has written, and how many of them were collected.
    """

    def __init__(self, memory: Tensor, board: Board) -> None:
        self._tensor, self._board = memory, board
        self._rings = [memory_of(ring) for ring in memory]

    @classmethod
    def within(cls, arena: Arena, workers: int, board: Board) -> Journal:
        """A new journal for these workers."""
        [memory] = arena.zeros((workers, ROWS * ROW.size), dtype=torch.uint8)
        return cls(memory, board)

    def write(self, worker: int, row: Row) -> None:
        """Writes a row; waits where the main process is far behind."""
        board = self._board
        number = board.written[worker]
        while number - board.collected[worker] >= ROWS:
            time.sleep(FULL_S)
        ROW.pack_into(self._rings[worker], number % ROWS * ROW.size, *row)
        board.written[worker] = number + 1  # last: what is counted is complete

    def collect(self, worker: int) -> Iterator[Row]:
        """The rows since the last time, in the main process."""
        board, ring = self._board, self._rings[worker]
        first, end = board.collected[worker], board.written[worker]
        for number in range(first, end):
            row: Row = ROW.unpack_from(ring, number % ROWS * ROW.size)
            yield row
        board.collected[worker] = end

    def __reduce__(self) -> tuple[type[Journal], tuple[Tensor, Board]]:
        return Journal, (self._tensor, self._board)

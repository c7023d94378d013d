"""What workers in processes let each other see: counts, each with one writer, and the sign to stop."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from freewheel.engines.processes.shared import WORDS, Arena, SharedCounts

VERSIONS, SAMPLES, STEPS, PROCESSOR_NS, BATCH, WRITTEN, COLLECTED, BUSY_NS = range(8)
SIGN = 0  # in the row behind the workers'
STOP, PAUSE = 1, 2


@final
class Board:
    """A row of counts for every worker, on cache lines of its own.

    Args:
        cells: ``(workers + 1, columns)`` int64 in an arena.

    Attributes:
        versions: updates applied, as counted in the version of the weights.
        samples: examples behind them.
        steps: finished steps.
        processor_ns: processor time that a worker has used, in nanoseconds.
        batch: number of the batch that it took last.
        busy_ns: time that it has spent in steps, without waiting for others, in nanoseconds.
        written: rows in its journal.
        collected: those that the main process, who counts here, has collected.
    """

    def __init__(self, cells: Tensor) -> None:
        self._cells = cells
        self.versions = SharedCounts(cells[:-1, VERSIONS])
        self.samples = SharedCounts(cells[:-1, SAMPLES])
        self.steps = SharedCounts(cells[:-1, STEPS])
        self.processor_ns = SharedCounts(cells[:-1, PROCESSOR_NS])
        self.batch = SharedCounts(cells[:-1, BATCH])
        self.written = SharedCounts(cells[:-1, WRITTEN])
        self.collected = SharedCounts(cells[:-1, COLLECTED])
        self.busy_ns = SharedCounts(cells[:-1, BUSY_NS])
        self._signs = SharedCounts(cells[-1])

    @classmethod
    def within(cls, arena: Arena, workers: int, shards: int) -> Board:
        """A new board for these workers and shards."""
        columns = WORDS * (1 + -(-shards // WORDS))
        [cells] = arena.zeros((workers + 1, columns), dtype=torch.int64)
        return cls(cells)

    def applied(self, shard: int) -> SharedCounts:
        """Updates applied to one of several shards."""
        return SharedCounts(self._cells[:-1, WORDS + shard])

    @property
    def sign(self) -> int:
        """What workers are to do when their step is finished: go on (0), stop, or pause for a checkpoint."""
        return self._signs[SIGN]

    @property
    def stopping(self) -> bool:
        """Workers are to finish their step and stand still."""
        return self._signs[SIGN] == STOP

    def stop(self) -> None:
        """Has every worker stand still after its step."""
        self._signs[SIGN] = STOP

    def pause(self) -> None:
        """Has every worker wait after its step, when it has deposited what it holds."""
        self._signs[SIGN] = PAUSE

    def go_on(self) -> None:
        """Nobody need pause any more."""
        if self._signs[SIGN] == PAUSE:
            self._signs[SIGN] = 0

    def __reduce__(self) -> tuple[type[Board], tuple[Tensor]]:
        return Board, (self._cells,)

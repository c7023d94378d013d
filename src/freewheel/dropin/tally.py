"""What each worker has done, in memory that the launcher sees however a worker ends."""

from __future__ import annotations

import time
from typing import NamedTuple, final

import torch
from torch import Tensor

from freewheel.engines.processes.shared import WORDS, Arena, memory_of

STEPS, SAMPLES, STALENESS, PUSHES, NANOSECONDS = range(5)


class Total(NamedTuple):
    """What one worker has done in all its lives.

    Attributes:
        steps: of its optimizer.
        samples: behind them.
        seconds: from its first step to its last, lives added up.
        staleness: mean over its updates.
    """

    steps: int
    samples: int
    seconds: float
    staleness: float

    @property
    def samples_per_second(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0


@final
class Tally:
    """A row of counts for every worker, each with one writer.

    Args:
        cells: ``(workers, WORDS)`` int64, in an arena or not.

    Example:
        >>> tally = Tally(torch.zeros(1, WORDS, dtype=torch.int64))
        >>> tally.add(0, samples=16, staleness=2)
        >>> tally.total(0).samples, tally.total(0).staleness
        (16, 2.0)
    """

    def __init__(self, cells: Tensor) -> None:
        self._cells = cells
        self._memory = memory_of(cells)
        self._then: int | None = None

    @classmethod
    def within(cls, arena: Arena, workers: int) -> Tally:
        """A new one in shared memory."""
        [cells] = arena.zeros((workers, WORDS), dtype=torch.int64)
        return cls(cells)

    def add(self, worker: int, samples: int, staleness: int | None) -> None:
        """Counts a step.

        Args:
            worker: whose.
            samples: behind it.
            staleness: of its update; None if it has pushed nothing.
        """
        now = time.monotonic_ns()
        self._count(worker, STEPS, 1)
        self._count(worker, SAMPLES, samples)
        if self._then is not None:
            self._count(worker, NANOSECONDS, now - self._then)
        self._then = now
        if staleness is not None:
            self._count(worker, STALENESS, staleness)
            self._count(worker, PUSHES, 1)

    def _count(self, worker: int, column: int, amount: int) -> None:
        self._memory[worker, column] += amount

    def steps(self) -> list[int]:
        """Of every worker."""
        return [self._memory[worker, STEPS] for worker in range(self._cells.shape[0])]

    def total(self, worker: int) -> Total:
        """What a worker has done."""
        steps, samples, staleness, pushes, ns = (self._memory[worker, column] for column in range(5))
        return Total(steps, samples, ns / 1e9, staleness / pushes if pushes else 0.0)

    def __reduce__(self) -> tuple[type[Tally], tuple[Tensor]]:
        return Tally, (self._cells,)

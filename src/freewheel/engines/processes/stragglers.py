"""Which workers are much slower than the others, by what they write on the board."""

from __future__ import annotations

import statistics
import time
from typing import final

from freewheel.engines.processes.board import Board
from freewheel.events import WorkerSlowed

WINDOW_S = 1.0  # step times are means over this long
WINDOWS = 3  # in a row in which a worker is slow, or is not, before that is told
SLOW, WELL = 3.0, 1.5  # times the others' median


@final
class Stragglers:
    """Compares the time that steps compute, not the time that workers wait.

    Args:
        board: of the run.
        workers: how many there are.
    """

    def __init__(self, board: Board, workers: int) -> None:
        self._board = board
        self._workers = range(workers)
        self._slow: set[int] = set()
        self._windows = [0] * workers  # in a row that contradict what is known of the worker
        self._restart(time.monotonic())

    def _restart(self, now: float) -> None:
        self._began = now
        self._steps, self._busy = list(self._board.steps), list(self._board.busy_ns)

    def look(self, seconds: float) -> list[WorkerSlowed]:
        """What has changed; call it a few times a second while workers train.

        Args:
            seconds: of the training clock.
        """
        now = time.monotonic()
        if now - self._began < WINDOW_S:
            return []
        steps = [after - before for after, before in zip(self._board.steps, self._steps, strict=True)]
        busy = [after - before for after, before in zip(self._board.busy_ns, self._busy, strict=True)]
        self._restart(now)
        each = {worker: busy[worker] / steps[worker] for worker in self._workers if steps[worker] > 0}
        return [event for worker in each for event in self._judged(worker, each, seconds)]

    def _judged(self, worker: int, each: dict[int, float], seconds: float) -> list[WorkerSlowed]:
        others = [time_ for other, time_ in each.items() if other != worker]
        if not others or not (middle := statistics.median(others)):
            return []
        times = each[worker] / middle
        changes = times < WELL if worker in self._slow else times > SLOW
        self._windows[worker] = self._windows[worker] + 1 if changes else 0
        if self._windows[worker] < WINDOWS:
            return []
        self._windows[worker] = 0
        self._slow ^= {worker}
        return [WorkerSlowed(worker, times, worker in self._slow, seconds)]

"""What becomes of a worker that has failed: replaced, or the end of the run. And who hangs."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, final

from freewheel.errors import TrainingError, WorkerError
from freewheel.job import Supervision

TRIES = 5  # lives of a worker that end without a finished step, or uses of a batch: then it is no accident
LEAST_TIMEOUT_S = 60.0
LEAST_START_S = 300.0  # that a process may take until it is there, and the first step of all
LONGEST_STEPS = 20.0  # times the longest step so far: a step that takes longer hangs
GLANCE_S = 0.2  # the main process looks more often than this, unless it is busy or stopped itself


class Verdict(NamedTuple):
    """What is to be done about a failure.

    Attributes:
        replace: start another process, or thread.
        note: why not, for the error.
    """

    replace: bool
    note: str = ""


@final
@dataclass
class Supervisor:
    """Keeps the budget of restarts.

    Attributes:
        supervision: what the user wants.
        restarts: how many there have been.
    """

    supervision: Supervision
    restarts: int = 0
    _idle: Counter[int] = field(default_factory=Counter)  # lives in a row without a finished step, by worker
    _batches: Counter[int] = field(default_factory=Counter)  # failures, by number of the batch

    def judge(self, worker: int, error: BaseException, batch: int | None, finished: bool) -> Verdict:
        """Decides.

        Args:
            worker: who has failed.
            error: why.
            batch: number of the one in hand; None for none.
            finished: it has finished a step since it was started.
        """
        supervision = self.supervision
        if supervision.on_error == "stop":
            return Verdict(False)
        if isinstance(error, TrainingError) and not isinstance(error, WorkerError):
            return Verdict(False)  # it has diverged
        self._idle[worker] = 0 if finished else self._idle[worker] + 1
        if self._idle[worker] >= TRIES:
            return Verdict(False, f"worker {worker} has failed {TRIES} times without finishing a step")
        if batch is not None:
            self._batches[batch] += 1
            if self._batches[batch] >= TRIES:
                return Verdict(False, f"batch {batch} was in hand {TRIES} times when a worker failed")
        if self.restarts >= supervision.max_restarts:
            return Verdict(False, f"all {supervision.max_restarts} restarts of `max_restarts` are used up")
        self.restarts += 1
        return Verdict(True)


def told_of(error: BaseException) -> str:
    """Why a worker has failed, for an event."""
    return error.reason if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"


class Numbers(Protocol):
    """One number a worker."""

    def __getitem__(self, worker: int, /) -> int: ...


class Signs(Protocol):
    """What shows that workers make progress."""

    @property
    def steps(self) -> Numbers:
        """Those that each worker has finished."""
        ...

    @property
    def batch(self) -> Numbers:
        """Number of the one that each worker took last, where that is known."""
        ...


@final
class Watch:
    """Knows since when each worker has made no progress, by what it writes on the board.

    Args:
        board: of the run.
        workers: how many there are.
        timeout_s: of a step; None: much more than the longest so far.
    """

    def __init__(self, board: Signs, workers: int, timeout_s: float | None) -> None:
        self._board = board
        self._timeout_s = timeout_s
        self._seen: list[tuple[int, int]] = [(-1, -1)] * workers
        self._since = [time.monotonic()] * workers
        self._longest = 0.0
        self._looked = math.inf

    def begin(self) -> None:
        """Looks up, before each worker is looked at.

        While the main process was away (a slow monitor or loader, Ctrl-Z) workers may have waited for its
        answer, and it has not seen what they did: that time does not count against them.
        """
        now = time.monotonic()
        away = now - self._looked - GLANCE_S
        if away > 0:
            self._since = [min(now, since + away) for since in self._since]
        self._looked = now

    def rest(self, worker: int) -> None:
        """The worker waits for somebody else, or has just begun: that is no step."""
        self._seen[worker] = (-1, -1)
        self._since[worker] = time.monotonic()

    def look(self, worker: int, starting: bool = False) -> float | None:
        """For how many seconds the worker has been in its step, if that is too long; None if it is not.

        Args:
            worker: which.
            starting: its process has not said a word yet; importing may take longer than a step.
        """
        now, state = time.monotonic(), (self._board.steps[worker], self._board.batch[worker])
        if state != self._seen[worker]:
            if self._seen[worker][0] >= 0:
                self._longest = max(self._longest, now - self._since[worker])
            self._seen[worker], self._since[worker] = state, now
            return None
        passed = now - self._since[worker]
        limit_s = max(self.limit_s, LEAST_START_S) if starting else self.limit_s
        return passed if passed > limit_s else None

    @property
    def limit_s(self) -> float:
        """Seconds that a step may take."""
        if self._timeout_s is not None:
            return self._timeout_s
        least_s = LEAST_TIMEOUT_S if self._longest else LEAST_START_S  # the first may compile something
        return max(least_s, LONGEST_STEPS * self._longest)

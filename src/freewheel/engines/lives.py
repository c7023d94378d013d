"""The lives of workers on threads: which of them end the run, and who hangs.

A thread cannot be ended from outside. One that raises an exception has ended by itself, and is replaced; one
that hangs is left behind, and the run ends.
"""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple, NoReturn, final

from freewheel.engines.session import Session
from freewheel.engines.supervisor import Supervisor, Watch
from freewheel.errors import FreewheelError, WorkerError
from freewheel.sources import Indexed, Lease
from freewheel.tasks import WorkerContext
from freewheel.update import Update


class Failure(NamedTuple):
    """How a worker's thread has ended, or that it does not come to the end of its step.

    Attributes:
        worker: whose thread.
        context: of this life of the worker.
        error: why.
        lease: the batch in hand; None for none, or one that could not be read.
        hangs: the thread is still there.
    """

    worker: int
    context: WorkerContext
    error: BaseException
    lease: Lease | None = None
    hangs: bool = False


@dataclass(frozen=True)
class Beats:
    """The steps of workers in this process, as signs that they make progress."""

    session: Session

    @property
    def steps(self) -> list[int]:
        """Those that each worker has finished."""
        return [context.sequence for context in self.session.contexts]

    @property
    def batch(self) -> list[int]:
        """Steps are enough."""
        return [0] * len(self.session.contexts)


@final
class Lives:
    """Decides about workers that fail.

    Args:
        session: of the run, at its beginning or where it goes on.
        supervisor: keeps the budget of restarts.
    """

    def __init__(self, session: Session, supervisor: Supervisor) -> None:
        self._session = session
        supervision = session.job.supervision
        self._supervisor = supervisor
        self._begun = [context.sequence for context in session.contexts]
        timeout, workers = supervision.step_timeout, session.job.setup.workers
        # Nothing hangs unless the user says so: who would be taken to hang could not be replaced.
        limited = timeout is not None and math.isfinite(timeout)
        self._watch = Watch(Beats(session), workers, timeout) if limited else None

    def begin(self, worker: int) -> None:
        """Another has taken the place of the worker."""
        self._begun[worker] = self._session.contexts[worker].sequence
        if self._watch is not None:
            self._watch.rest(worker)

    def judge(self, failure: Failure, begun: bool) -> None:
        """Whether the worker is to be replaced.

        Args:
            failure: what has happened.
            begun: the run has; who fails before that would do so again.

        Raises:
            BaseException: it is not: the error that ends the run.
        """
        worker, context, error = failure.worker, failure.context, failure.error
        told = explained(worker, context.sequence, error)
        raised = isinstance(error, Exception) and isinstance(told, WorkerError)  # by the user's code
        if failure.hangs or not begun or not raised:
            raise told
        if self._session.job.source.broken:
            told.add_note("freewheel: `data` is read in order, and cannot be read on behind an error")
            raise told
        batch = None if failure.lease is None else failure.lease.number
        verdict = self._supervisor.judge(worker, told, batch, context.sequence > self._begun[worker])
        if not verdict.replace:
            if verdict.note:
                told.add_note(f"freewheel: {verdict.note}; it was not replaced again")
            raise told

    def hanging(self, threads: Sequence[threading.Thread], rests: Callable[[int], bool]) -> Iterator[Failure]:
        """Who has been in one step for too long.

        Args:
            threads: of the workers.
            rests: whether a worker waits for others, or stands still.
        """
        watch = self._watch
        if watch is None:
            return
        watch.begin()
        for worker, thread in enumerate(threads):
            if rests(worker):
                watch.rest(worker)
                continue
            passed = watch.look(worker)
            if passed is None:
                continue
            stack = _stack(thread)
            watch.rest(worker)  # it is told of once, and who only reads data is given time again
            if stack and not self._reads_data(stack):
                context = self._session.contexts[worker]
                yield Failure(worker, context, hung(worker, context.sequence, passed, stack), hangs=True)

    def _reads_data(self, stack: list[FrameType]) -> bool:
        """Whether the worker waits for a stream of data, which workers read in turn."""
        reading = any(frame.f_code is Session.begin_step.__code__ for frame in stack)
        return reading and not isinstance(self._session.job.source, Indexed)


def _stack(thread: threading.Thread) -> list[FrameType]:
    """Where a thread is, innermost frame first; empty if it has ended."""
    frame = sys._current_frames().get(thread.ident or 0)
    return [] if frame is None else [frame for frame, _ in traceback.walk_stack(frame)]


def hung(worker: int, sequence: int, seconds: float, stack: list[FrameType]) -> WorkerError:
    """The error of a worker that has not finished its step for so many seconds, with the place it is at."""
    cause = TimeoutError(
        f"it has not finished its step for {seconds:.3g} s, and a thread that hangs can be neither ended nor"
        " replaced; use engine='processes', where it is, or give a longer `step_timeout` if steps may take so"
        " long"
    )
    error = WorkerError(worker, sequence, cause)
    error.__cause__ = cause
    where = "".join(traceback.format_stack(stack[0]))
    error.add_note(f"freewheel: the thread of worker {worker} was left behind; it was here:\n{where}")
    return error


def explained(worker: int, sequence: int, error: BaseException) -> BaseException:
    """The error of a worker, with its place; freewheel's own stay as they are."""
    if isinstance(error, FreewheelError):
        return error
    wrapped = WorkerError(worker, sequence, error)
    wrapped.__cause__ = error
    return wrapped


def refused(update: Update) -> NoReturn:
    """The push of a thread that was left behind, should it ever go on: the weights are the user's again."""
    raise RuntimeError(f"worker {update.worker} had hung, and was left behind: its push is refused")

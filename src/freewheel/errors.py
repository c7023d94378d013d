"""The errors that freewheel raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from freewheel.comparison import Comparison


class FreewheelError(Exception):
    """Every error that freewheel raises on purpose is one of these.

    Attributes:
        comparison: of the runs that had come to their end, where a later run of ``compare()`` failed.
    """

    comparison: Comparison | None = None


class ConfigurationError(FreewheelError, ValueError):
    """An argument cannot be used; the message names it, the value that came, and the remedy."""


class DataError(FreewheelError, ValueError):
    """Data is missing, damaged, empty, not finite, or does not fit the model."""


class CheckpointError(FreewheelError, ValueError):
    """A checkpoint cannot be read, or it is not of the run that is to go on from it."""


class TrainingError(FreewheelError, RuntimeError):
    """Training cannot go on: it diverged, or a worker raised an error."""


class WorkerError(TrainingError):
    """A worker raised an error, its process died, or it hangs; the original exception is ``__cause__``.

    An exception of a worker process has the text of its traceback there as its own cause. Where a process
    died, a ``ChildProcessError`` says by which signal, or with which exit code. That of a worker that hangs
    is a ``TimeoutError``; of a thread, a note says where.

    Attributes:
        worker: which worker, from 0.
        sequence: which of its steps, from 0.
        reason: what the original exception says, with its type.
    """

    def __init__(self, worker: int, sequence: int, error: BaseException) -> None:
        self.worker = worker
        self.sequence = sequence
        self.reason = f"{type(error).__name__}: {error}"
        super().__init__(f"worker {worker} failed in its step {sequence}: {self.reason}")

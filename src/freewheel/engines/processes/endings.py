"""How workers in processes end, as errors of the main process."""

from __future__ import annotations

import pickle
import signal
from multiprocessing.process import BaseProcess

from freewheel.engines.processes.messages import Failed
from freewheel.errors import FreewheelError, WorkerError


class RemoteTraceback(Exception):  # noqa: N818  (it is no error of its own, but the story of one)
    """The traceback of an error in a worker process, as text: the cause of the error as it arrives here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def explained(worker: int, failed: Failed) -> BaseException:
    """The error of a worker, as one of this process; its traceback there is the cause of it here."""
    error: BaseException
    try:
        error = pickle.loads(failed.error)
    except Exception:  # some cannot be pickled, and some cannot be made again
        error = RuntimeError(f"{failed.kind}: {failed.message}")
    error.__cause__ = RemoteTraceback(failed.trace)
    if isinstance(error, FreewheelError):
        return error
    wrapped = WorkerError(worker, failed.sequence, error)
    wrapped.__cause__ = error
    return wrapped


def death(worker: int, sequence: int, process: BaseProcess) -> WorkerError:
    """The error of a worker whose process has ended without a word.

    Args:
        worker: which worker.
        sequence: the step that it was in.
        process: has ended.
    """
    cause = ChildProcessError(f"its process {process.pid} {_how_it_ended(process.exitcode)}")
    error = WorkerError(worker, sequence, cause)
    error.__cause__ = cause
    return error


def hanging(worker: int, sequence: int, seconds: float, starting: bool = False) -> WorkerError:
    """The error of a worker that was killed because it had not finished its step for so many seconds.

    Args:
        worker: which worker.
        sequence: the step that it was in.
        seconds: how long.
        starting: it had not even been ready for its first.
    """
    what = "was not ready for its first step after" if starting else "had not finished its step for"
    cause = TimeoutError(
        f"it {what} {seconds:.3g} s, and its process was killed; give a longer `step_timeout` if that may"
        " take so long"
    )
    error = WorkerError(worker, sequence, cause)
    error.__cause__ = cause
    return error


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code}"

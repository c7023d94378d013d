"""What ``fit`` does about checkpoints before a run: checks, where they go, what the run goes on from."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from freewheel.checkpoints.folder import CHECKPOINTS, newest
from freewheel.checkpoints.origin import Origin, identity_of, origin_of, run_of
from freewheel.checkpoints.saver import Saver
from freewheel.errors import ConfigurationError
from freewheel.job import Checkpointing, Job

ENGINES = ("threads", "processes", "serial")
EVERY_S = 60.0  # seconds of training between two checkpoints, if nothing is said


def with_checkpoints(
    job: Job,
    engine: str,
    run_dir: str | Path | None,
    every: float | Literal["auto"] | None,
    keep: int,
    resume: str | Path | None,
) -> Job:
    """The job with its checkpoints, if it writes any or goes on from one.

    Args:
        job: that is to run.
        engine: the name of the engine that will run it.
        run_dir: the directory of the run; None writes nothing.
        every: seconds of training between two checkpoints; None writes none, "auto" one a minute where the
            engine writes any.
        keep: how many to keep.
        resume: the directory of a run, or of a checkpoint, to go on from.

    Raises:
        ConfigurationError: an argument out of its range, an interval for an engine that writes no
            checkpoints, or a run that cannot go on from one.
        CheckpointError: there is no complete checkpoint to go on from, or it is of another job.
    """
    seconds = _interval(every, engine)
    _check_keep(keep)
    writes = run_dir is not None and seconds is not None
    if resume is None and not writes:
        return job
    saver = Saver(Path(run_dir) / CHECKPOINTS, seconds, keep) if writes and run_dir is not None else None
    origin = None
    if resume is not None:
        origin = _origin(job, engine, Path(resume))
        former = len(origin.tree["server"]["book"]["slots"])
        job = replace(job, setup=replace(job.setup, former=former))
    return replace(job, checkpoints=Checkpointing(identity_of(job, engine), saver, origin))


def _interval(every: Any, engine: str) -> float | None:
    """Seconds between two checkpoints on this engine; None if it is to write none."""
    if every is None:
        return None
    if every == "auto":
        return EVERY_S if engine in ENGINES else None
    number = isinstance(every, int | float) and not isinstance(every, bool)
    if not (number and every > 0):
        raise ConfigurationError(
            f"`checkpoint_every` must be a number of seconds > 0, got {every!r}; None writes no checkpoints"
        )
    if engine not in ENGINES:
        raise ConfigurationError(
            f"`checkpoint_every` works with the engines {', '.join(ENGINES)}, got {every!r} with {engine!r},"
            f" which writes no checkpoints; {_remedy(engine)}, or leave checkpoint_every out"
        )
    return float(every)


def _check_keep(keep: Any) -> None:
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise ConfigurationError(
            f"`keep_checkpoints` must be a whole number >= 1, got {keep!r}; checkpoint_every=None writes none"
        )


def _origin(job: Job, engine: str, resume: Path) -> Origin:
    from freewheel.rundir import EVENTS

    if engine not in ENGINES:
        raise ConfigurationError(
            f"`resume` works with the engines {', '.join(ENGINES)}, got {engine!r}, which writes no"
            f" checkpoints; {_remedy(engine)}"
        )
    if job.trace is not None:
        raise ConfigurationError(
            "`record`=True needs a run from its beginning, but `resume` goes on in the middle of one; use"
            " record=False"
        )
    checkpoint = newest(resume)
    return origin_of(checkpoint, job, engine, run_of(checkpoint.folder) / EVENTS)


def _remedy(engine: str) -> str:
    return "the same seed gives the same run again" if engine == "simulated" else "use engine='threads'"


@contextmanager
def sigterm_as_ctrl_c(job: Job) -> Iterator[None]:
    """A run that writes checkpoints writes one at SIGTERM, too, before the process ends by it.

    Not where the signal has a handler already, which decides for itself, or in another thread than the main
    one, where none can be set.
    """
    writes = job.checkpoints is not None and job.checkpoints.saver is not None
    main = threading.current_thread() is threading.main_thread()
    if not (writes and main) or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    terminated = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)

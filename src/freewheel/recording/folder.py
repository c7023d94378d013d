"""Writes a recording beside the run's other files."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from freewheel.errors import ConfigurationError
from freewheel.job import Job
from freewheel.recording.identity import identity, setup
from freewheel.recording.log import FORMAT, INITIAL, Recording, digest
from freewheel.rundir import save_weights


@contextmanager
def kept(folder: Path, job: Job) -> Iterator[None]:
    """Writes the initial weights now, and the recording when the run ends, whichever way it does.

    Raises:
        ConfigurationError: the initial weights cannot be written.
    """
    try:
        save_weights(job.module, folder / INITIAL)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the initial weights to `run_dir` {folder}: {error}; choose another folder"
        ) from error
    header = {"format": FORMAT, "identity": identity(job), "setup": setup(job)}
    try:
        yield
    finally:
        _write(folder, job, header)


def _write(folder: Path, job: Job, header: dict[str, Any]) -> None:
    """A full disk must not cost the user what was trained."""
    trace = job.trace
    assert trace is not None
    columns = trace.columns()
    finished = asdict(trace.finished) if trace.finished is not None else None
    further = {"statuses": trace.statuses, "final": digest(job.module), "finished": finished}
    try:
        Recording({**header, **further, "versions": _versions()}, columns).save(folder)
    except OSError as error:
        warnings.warn(
            f"the run is over, but its recording could not be written to {folder}: {error}", stacklevel=2
        )


def _versions() -> dict[str, str]:
    import freewheel

    return {
        "freewheel": freewheel.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }

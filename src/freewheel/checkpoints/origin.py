"""Where a run goes on from: a checkpoint that was read, found to be of the same job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from freewheel.checkpoints.folder import Checkpoint
from freewheel.checkpoints.resizing import resized
from freewheel.elastic import ENGINES
from freewheel.errors import CheckpointError
from freewheel.events import Event, Steps, from_json
from freewheel.job import Job
from freewheel.params import unusual_orders
from freewheel.recording.identity import identity


@dataclass(frozen=True)
class Origin:
    """What a run goes on from.

    Attributes:
        folder: of the checkpoint.
        tree: the state of the run.
        events: what had happened until then, without the single steps, as far as the run directory tells.
    """

    folder: Path
    tree: Mapping[str, Any]
    events: tuple[Event, ...] = ()

    @property
    def run(self) -> Path:
        """The directory of the run that wrote the checkpoint."""
        return run_of(self.folder)


def run_of(checkpoint: Path) -> Path:
    """The directory of the run that wrote a checkpoint: the folder of the folder of checkpoints."""
    return checkpoint.resolve().parent.parent


def origin_of(checkpoint: Checkpoint, job: Job, engine: str, events: Path) -> Origin:
    """The checkpoint as the origin of a job's run.

    Args:
        checkpoint: that was read.
        job: which is to go on from it.
        engine: the job's.
        events: the file with the events of the run that wrote it; it may be missing.

    Raises:
        CheckpointError: it is of another job; the message names the first difference, and the remedy.
    """
    tree = checkpoint.tree
    try:
        then, now = int(tree["identity"]["workers"]), job.setup.workers
        _check_same(checkpoint.folder, tree["identity"], identity_of(_of_workers(job, then), engine))
        if now != then:
            _check_resizable(checkpoint.folder, then, now, engine)
            tree = resized(tree, now, job.method.leases == "fixed")
        return Origin(checkpoint.folder, tree, tuple(_events(events, tree["record"]["events"])))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {checkpoint.folder} is not one of a run: {error!r}") from error


def _of_workers(job: Job, workers: int) -> Job:
    return replace(job, setup=replace(job.setup, workers=workers))


def _check_resizable(folder: Path, then: int, now: int, engine: str) -> None:
    if engine not in ENGINES:
        raise CheckpointError(
            f"checkpoint {folder} is of another job: `workers` was {then}, got {now}. Resume with the"
            f" arguments of the run that wrote it: on engine {engine!r} a run keeps its number of workers"
        )


def identity_of(job: Job, engine: str) -> dict[str, Any]:
    """What of a job must be the same where it goes on, as JSON values; its end may be another."""
    setup, found = job.setup, identity(job)
    method = found.pop("method")  # last: its defaults depend on the number of workers
    return {
        "engine": engine,
        **found,
        "method": method,
        "granularity": job.method.granularity,
        "channels_last": setup.channels_last,
        "memory": {k: list(v) for k, v in unusual_orders(job.module, setup.channels_last).items()},
    }


def _check_same(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name in {**then, **now}:
        found = _difference(f"`{name}`", then.get(name), now.get(name))
        if found:
            raise CheckpointError(
                f"checkpoint {folder} is of another job: {found}. Resume with the arguments of the run that"
                " wrote it; only its end (epochs, max_samples, max_seconds, target) may be another, and on"
                " threads and processes its number of workers"
            )


def _difference(name: str, then: Any, now: Any) -> str:
    """The first difference between two values, in words; empty if there is none."""
    if then == now:
        return ""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        parts = (_difference(f"{name} {key}", then.get(key), now.get(key)) for key in {**then, **now})
        return next(part for part in parts if part)
    return f"{name} was {_shown(then)}, got {_shown(now)}"


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


def _events(file: Path, count: int) -> list[Event]:
    """The first events of a run; fewer where the file was damaged by a crash."""
    found: list[Event] = []
    if not file.is_file():
        return found
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = from_json(line)
        except (ValueError, TypeError):
            break
        if not isinstance(event, Steps):
            found.append(event)
        if len(found) == count:
            break
    return found

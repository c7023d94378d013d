"""Workers that come and go: the number of workers of a run that is under way, changed from outside.

Who wants another number writes it to a file in the directory of the run; the run looks for that a few times a
second, changes, and tells of it among its events. What stands in the way is told there, too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from freewheel.errors import ConfigurationError
from freewheel.events import Event, Resumed, RunStarted, WorkersChanged, WorkersKept, from_json, read
from freewheel.sources import Indexed, Sequences

if TYPE_CHECKING:
    from freewheel.job import Job

ENGINES = ("processes", "threads")
REQUEST = "workers.json"
LOOK_S = 0.2  # how often a run looks for a request
ANSWER_S = 0.05  # how often who asks looks for the answer


@dataclass
class Requests:
    """Where a run looks for requests.

    Attributes:
        folder: of the run.
    """

    folder: Path
    _due: float = field(default=0.0, repr=False)

    def begin(self) -> None:
        """The run begins: what was asked of an earlier one is forgotten."""
        (self.folder / REQUEST).unlink(missing_ok=True)

    def pending(self) -> int | None:
        """How many workers somebody wants; None if nobody has asked since."""
        now = time.monotonic()
        if now < self._due:
            return None
        self._due = now + LOOK_S
        path = self.folder / REQUEST
        try:
            text = path.read_text(encoding="utf-8")
            path.unlink()
        except OSError:
            return None
        try:
            return int(json.loads(text)["workers"])
        except (ValueError, KeyError, TypeError):
            return None


def check_resizable(job: Job, workers: int) -> None:
    """Whether the job can go on with this number of workers.

    Raises:
        ConfigurationError: it cannot; the message says why.
    """
    _check_number(workers)
    if job.method.leases == "fixed" and not isinstance(job.source, Indexed):
        raise ConfigurationError(
            f"`workers`={workers}: {job.method.name} gives every worker batches of its own, which needs data"
            " with an index; give tensors, or a Dataset with a length"
        )
    if isinstance(job.source, Sequences) and job.source.streams < workers:
        raise ConfigurationError(
            f"`workers`={workers} is more than the {job.source.streams} streams of the data, which are cut"
            " when a run begins; begin it with more workers"
        )
    job.method.rule_for(workers)


def set_workers(run_dir: str | Path, workers: int, wait_s: float = 120.0) -> WorkersChanged:
    """Changes the number of workers of a run on threads or processes that is under way.

    Workers finish their step and push what they hold back; then as many go on. Those that stay keep their
    state, new ones begin with the present weights. Nothing is lost, and no batch is used twice. Training
    stands still for a fraction of a second. While the model is evaluated, the change waits.

    Args:
        run_dir: of the run.
        workers: how many it is to have, >= 1.
        wait_s: how long to wait for it, in seconds.

    Returns:
        What the run tells of the change.

    Raises:
        ConfigurationError: the run is over, cannot change, or gave no answer; the message says which.
    """
    folder = Path(run_dir)
    _check_number(workers)
    _running(folder)
    tail = _Tail(_events_of(folder))
    asked = _ask(folder / REQUEST, workers)
    ends = time.monotonic() + wait_s
    try:
        while time.monotonic() < ends:
            over = not is_under_way(folder)
            overtaken = _is_overtaken(folder / REQUEST, asked)
            for answer in tail.read():
                if isinstance(answer, WorkersChanged) and answer.after == workers:
                    return answer
                if isinstance(answer, WorkersKept) and answer.wanted == workers:
                    raise ConfigurationError(answer.reason)
            if overtaken:
                raise ConfigurationError(
                    f"`run_dir` {folder}: somebody else has asked for another number meanwhile; ask again"
                )
            if over:
                raise ConfigurationError(f"`run_dir` {folder} has ended before its workers could change")
            time.sleep(ANSWER_S)
    finally:
        if not _is_overtaken(folder / REQUEST, asked):
            (folder / REQUEST).unlink(missing_ok=True)
    raise ConfigurationError(
        f"`run_dir` {folder} has not changed within {wait_s:g} s: it does so between two steps, and not while"
        " it evaluates the model; try again, with a longer wait"
    )


def workers_of(run_dir: str | Path) -> int:
    """How many workers a run under way has.

    Raises:
        ConfigurationError: the directory has no run, or it is over.
    """
    workers = now = _running(Path(run_dir)).workers
    for event in read(_events_of(Path(run_dir))):
        if isinstance(event, WorkersChanged):
            now = event.after
        elif isinstance(event, Resumed):
            now = workers
    return now


def is_under_way(folder: Path) -> bool:
    """Whether some process is writing to the directory of a run."""
    from freewheel.rundir import held

    try:
        with held(folder):
            return False
    except ConfigurationError:
        return True


def _running(folder: Path) -> RunStarted:
    events = _events_of(folder)
    if not events.is_file():
        raise ConfigurationError(f"`run_dir` {folder} is not the directory of a run; give that of run_dir=")
    started = next((event for event in read(events) if isinstance(event, RunStarted)), None)
    if started is not None and started.engine not in ENGINES:
        raise ConfigurationError(
            f"`run_dir` {folder} is on engine {started.engine!r}, whose number of workers is fixed; use"
            " engine='threads' or 'processes'"
        )
    if started is None or not is_under_way(folder):
        raise ConfigurationError(
            f"`run_dir` {folder} is not under way; to go on with it, and with another number of workers:"
            f" freewheel train --resume {folder} --workers N"
        )
    return started


def _events_of(folder: Path) -> Path:
    from freewheel.rundir import EVENTS

    return folder / EVENTS


class _Tail:
    """What is written to a file of events from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size  # bytes

    def read(self) -> Iterator[Event]:
        """The events since the last time, as far as they are complete."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        return map(from_json, data.decode(encoding="utf-8").splitlines())


def _ask(path: Path, workers: int) -> str:
    """Leaves a request, which is returned as it is written."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    text = json.dumps({"workers": workers, "by": os.getpid(), "at": time.time()}) + "\n"
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise ConfigurationError(f"`run_dir` {path.parent} cannot be written to: {error.strerror}") from error
    return text


def _is_overtaken(path: Path, asked: str) -> bool:
    """Another request lies where this one did, and has not been seen to."""
    try:
        return path.read_text(encoding="utf-8") not in (asked, "")
    except OSError:
        return False  # somebody has seen to it


def _check_number(workers: object) -> None:
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
        raise ConfigurationError(f"`workers` must be a whole number >= 1, got {workers!r}")

"""Trains on worker processes under main processes that are killed at random moments; prints what was left.

Usage: killed_main_processes.py METHOD FOLDER KILLS. In a program of its own, because a process with threads
cannot be forked, and because main processes that have imported PyTorch already come to their workers sooner.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from killed_runs import network_and_data
from torch import Tensor, nn

import freewheel
from freewheel.checkpoints.folder import CHECKPOINTS, newest, ordered, read
from freewheel.events import CheckpointWritten, Event, Resumed, Steps
from freewheel.methods import Method

SAMPLES, BATCH, EPOCHS, WORKERS = 512, 8, 60, 2
STEP_S = 0.002  # at least, so that no machine is done before it was killed often enough
CHECKPOINT_S = 0.05
PATIENCE_S = 20.0  # for processes that are to end with the main process; a busy machine takes its time
SOON, STARTED_S = 0.3, 2.0  # of the lives are killed within so many seconds, in which they come to train
METHODS: dict[str, Method] = {
    "hogwild": freewheel.hogwild(0.02),
    "synchronous": freewheel.synchronous(0.05, momentum=0.9),
}
MARK = "FREEWHEEL_TEST_OF_KILLED_RUNS"  # a variable that all processes of these runs have

Row = tuple[int, int, int]  # worker, which of its steps, number of the batch


def slow(prediction: Tensor, target: Tensor) -> Tensor:
    if multiprocessing.parent_process() is not None:
        time.sleep(STEP_S)
    return nn.functional.cross_entropy(prediction, target)


def train(method: str, **settings: Any) -> freewheel.Result:
    return freewheel.fit(
        *network_and_data(SAMPLES),
        loss=slow,
        method=METHODS[method],
        engine="processes",
        workers=WORKERS,
        batch_size=BATCH,
        epochs=EPOCHS,
        **settings,
    )


# --- one life ---


class Notes:
    """What a main process has heard of its run, in a file: it is there though the process is killed.

    A line for every event; what the process was writing when it was killed is a line without an end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        match event:
            case Steps():
                note: Any = list(zip(event.worker, event.sequence, event.lease, strict=True))
            case Resumed(samples=samples, steps=steps):
                note = {"resumed": [steps, sum(samples)]}
            case CheckpointWritten(steps=steps):
                note = {"written": steps}
            case _:
                return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(note) + "\n")

    def lines(self) -> Iterator[Any]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return (json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n"))

    @property
    def rows(self) -> list[Row]:
        return [(row[0], row[1], row[2]) for line in self.lines() if isinstance(line, list) for row in line]

    def summary(self) -> dict[str, Any]:
        told = [line for line in self.lines() if isinstance(line, dict)]
        return {
            "resumed": [line["resumed"] for line in told if "resumed" in line],
            "written": max([line["written"] for line in told if "written" in line], default=0),
        }


def begin(method: str, run: Path, notes: Notes) -> int:
    """Starts or resumes the run in a main process of its own; returns its process id."""
    child = os.fork()
    if child:
        return child
    found = ordered(run / CHECKPOINTS)
    if not found and (run / "events.jsonl").exists():
        (run / "events.jsonl").unlink()  # killed before its first checkpoint
    arguments: dict[str, Any] = {"run_dir": run, "resume": run if found else None}
    train(method, checkpoint_every=CHECKPOINT_S, monitors=[notes], **arguments)
    os._exit(0)


# --- its death ---


def kill_at_random(run: Path, child: int, draw: random.Random) -> set[tuple[int, int]]:
    """Kills a main process; returns the segments of shared memory that it had."""
    before = set(os.listdir(run / CHECKPOINTS)) if (run / CHECKPOINTS).exists() else set()
    soon = draw.random() < SOON
    latest = time.monotonic() + (draw.uniform(0, STARTED_S) if soon else PATIENCE_S)
    while not _wrote(run, before) and time.monotonic() < latest:
        if os.waitpid(child, os.WNOHANG)[0]:
            raise SystemExit("a main process has ended before it was killed")
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0 if soon else 2 * CHECKPOINT_S))
    segments = set(_segments(Path(f"/proc/{child}")))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    return segments


def _wrote(run: Path, before: set[str]) -> bool:
    """Whether it has begun to write a checkpoint, or is done with one."""
    return (run / CHECKPOINTS).exists() and not set(os.listdir(run / CHECKPOINTS)) <= before


def _segments(process: Path) -> Iterator[tuple[int, int]]:
    """The shared memory that a process has, open or mapped, as (device, number of the file)."""
    with suppress(OSError):
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                if os.readlink(link).startswith("/memfd:freewheel"):
                    found = link.stat()
                    yield found.st_dev, found.st_ino
    with suppress(OSError):
        for line in (process / "maps").read_text().splitlines():
            if "/memfd:freewheel" in line:
                _, _, _, device, number, *_ = line.split()
                yield os.makedev(*(int(part, 16) for part in device.split(":"))), int(number)


def _left() -> list[psutil.Process]:
    """Processes of killed runs: workers, their fork server, and what watches over its resources."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def await_the_end_of_all() -> list[str]:
    """The processes that are left after all patience, by name; none, if all is well."""
    ends = time.monotonic() + PATIENCE_S
    while left := _left():
        if time.monotonic() > ends:
            return [str(process) for process in left]
        time.sleep(0.01)
    return []


def holders(segments: set[tuple[int, int]]) -> list[str]:
    """Processes that still have one of these."""
    processes = [path for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [path.name for path in processes if segments & set(_segments(path))]


# --- what has become of the run ---


def place(run: Path) -> dict[str, Any]:
    """How far the newest checkpoint is; reading one that is not complete raises an error."""
    found = [read(path) for path in ordered(run / CHECKPOINTS)]
    if not found:
        return {"steps": 0, "samples": 0, "of": [0] * WORKERS}
    tally = found[0].tree["record"]["tally"]
    return {
        "steps": int(found[0].folder.name),
        "samples": sum(tally["samples"]),
        "of": [worker["context"]["sequence"] for worker in found[0].tree["workers"]],
    }


def kept(lives: list[Notes], places: list[dict[str, Any]]) -> Counter[int]:
    """How often each batch was used by steps that were not lost: those before the next checkpoint."""
    used: Counter[int] = Counter()
    began = [0] * WORKERS
    for notes, ended in zip(lives, [*places, None], strict=True):
        for worker, sequence, lease in notes.rows:
            if began[worker] <= sequence and (ended is None or sequence < ended["of"][worker]):
                used[lease] += 1
        began = began if ended is None else ended["of"]
    return used


def main(method: str, folder: str, kills: str) -> None:
    run, notes_of, draw = Path(folder) / "run", Path(folder) / "notes", random.Random(3)
    notes_of.mkdir()
    os.environ[MARK] = str(os.getpid())  # of processes that are started from here on, not of this one
    lives = [Notes(notes_of / str(number)) for number in range(int(kills) + 1)]
    places: list[dict[str, Any]] = []
    left: list[dict[str, Any]] = []
    for notes in lives[:-1]:
        segments = kill_at_random(run, begin(method, run, notes), draw)
        processes = await_the_end_of_all()
        left.append({"processes": processes, "holders": holders(segments), "segments": len(segments)})
        places.append(place(run))
    result = train(method, run_dir=run, resume=run, monitors=[lives[-1]], checkpoint_every=CHECKPOINT_S)
    found = {
        "places": places,
        "left": left,
        "lives": [notes.summary() for notes in lives],
        "unfinished": [path.name for path in (run / CHECKPOINTS).glob(".*")],
        "newest": newest(run).folder.name,
        "used": Counter(kept(lives, places).values()),
        "planned": EPOCHS * SAMPLES,
        "same": method == "synchronous" and _same(result, train(method)),
        **{name: getattr(result, name) for name in ("reason", "steps", "samples")},
    }
    print(json.dumps(found))


def _same(one: freewheel.Result, other: freewheel.Result) -> bool:
    values, others = one.module.state_dict().values(), other.module.state_dict().values()
    return one.ledger == other.ledger and all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])

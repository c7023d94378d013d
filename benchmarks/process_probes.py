"""Workers in processes: checkpoints beside the training, deaths, preemption, and how fast a run begins."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from torch import nn

import freewheel
from benchmarks import workloads
from benchmarks.contestants import Settings, Values, fit_loop
from benchmarks.harness import ROOT
from freewheel.checkpoints.folder import newest
from freewheel.events import CheckpointWritten, Event, Tick, WorkerFailed, WorkerRestarted

PATIENCE_S = 60.0  # only against hanging
GRACE_S = 2.0  # for processes that watch the main one, and see that it has ended
LONGEST_S = 600.0  # a training that nobody preempts ends by itself


def checkpointed(settings: Settings) -> Values:
    """Rate of a run that has a directory, and writes checkpoints there or none (``checkpoint_every``)."""
    data = workloads.tensors(settings["data"], "train")
    fit_loop(data, settings, max_seconds=settings["warmup_seconds"])
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        result, _ = fit_loop(
            data,
            settings,
            max_seconds=settings["seconds"],
            run_dir=Path(folder) / "run",
            checkpoint_every=settings["checkpoint_every"],
            monitors=[events.append],
        )
    written = [event for event in events if isinstance(event, CheckpointWritten)]
    during = [event for event in written if event.seconds < 0.99 * result.seconds]  # not the one at the end
    return {
        "samples_per_second": result.samples_per_second,
        "samples": result.samples,
        "seconds": result.seconds,
        "checkpoints": len(during),
        "bytes": max((event.bytes for event in written), default=0),
        "write_seconds": [event.write_seconds for event in during],
    }


# --- deaths ---


def deaths(settings: Settings) -> Values:
    """Kills a worker now and then by SIGKILL; seconds until the run has noticed, and until it is replaced."""
    data = workloads.tensors(settings["data"], "train")
    killer = _Killer(settings["seed"])
    ended = threading.Event()
    thread = threading.Thread(target=killer.work, args=(ended,), daemon=True)
    thread.start()
    try:
        result, _ = fit_loop(
            data,
            settings,
            max_seconds=settings["seconds"],
            max_restarts=10**6,
            monitors=[killer.listen],
        )
    finally:
        ended.set()
        thread.join()
    return {"noticed_s": killer.noticed_s, "replaced_s": killer.replaced_s, "samples": result.samples}


class _Killer:
    """One death after another, each when the one before is overcome and training has gone on for a while."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self._trains, self._noticed, self._replaced = (threading.Event() for _ in range(3))
        self._killed_at = 0.0
        self.noticed_s: list[float] = []
        self.replaced_s: list[float] = []

    def listen(self, event: Event) -> None:
        """The monitor."""
        if isinstance(event, Tick):
            self._trains.set()
        elif isinstance(event, WorkerFailed):
            self.noticed_s.append(time.perf_counter() - self._killed_at)
            self._noticed.set()
        elif isinstance(event, WorkerRestarted):
            self.replaced_s.append(time.perf_counter() - self._killed_at)
            self._replaced.set()

    def work(self, ended: threading.Event) -> None:
        """Kills until the run ends."""
        _given(self._trains, ended)
        while not ended.wait(self._draw.uniform(0.1, 0.4)):
            self._noticed.clear()
            self._replaced.clear()
            victim = self._draw.choice(_workers())
            self._killed_at = time.perf_counter()
            victim.kill()
            for sign in (self._noticed, self._replaced):
                if not _given(sign, ended):
                    return


def _workers() -> list[psutil.Process]:
    """The worker processes of the run here: children of its fork server."""
    me = psutil.Process()
    return [process for process in me.children(recursive=True) if process.ppid() != me.pid]


def _given(sign: threading.Event, ended: threading.Event) -> bool:
    """Waits for the sign; False: the run has ended before that."""
    while not sign.wait(0.05):
        if ended.is_set():
            return False
    return True


# --- preemption ---


def preempted(settings: Settings) -> Values:
    """Sends SIGTERM to a training in a process of its own; seconds until it has ended, and what it left."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        process = _training(settings, run)
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"the training did not begin:\n{process.communicate()[1][-2000:]}")
            others = psutil.Process(process.pid).children(recursive=True)
            asked = time.perf_counter()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=PATIENCE_S)
            seconds = time.perf_counter() - asked
        finally:
            process.kill()
            process.wait()
        if process.returncode != -signal.SIGTERM:
            raise RuntimeError(f"a preempted training ended with {process.returncode}:\n{errors[-2000:]}")
        checkpoint = newest(run)
        size = sum(file.stat().st_size for file in checkpoint.folder.iterdir())
    return {
        "seconds": seconds,
        "steps": int(checkpoint.folder.name),
        "bytes": size,
        "left": _left(others),
    }


def _left(processes: list[psutil.Process]) -> int:
    """How many are there yet, when they have had a moment to notice."""
    until = time.monotonic() + GRACE_S
    while (count := sum(map(_lives, processes))) and time.monotonic() < until:
        time.sleep(0.05)
    return count


def _lives(process: psutil.Process) -> bool:
    """It has not ended; one that has, and that nobody has asked after, uses nothing but its number."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _training(settings: Settings, run: Path) -> subprocess.Popen[str]:
    text = json.dumps({**settings, "run_dir": str(run)})
    command = [sys.executable, "-m", "benchmarks.contestants", "until_preempted", "--json", text]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_preempted(settings: Settings) -> Values:
    """Trains with checkpoints and evaluations until SIGTERM ends the process; says when it has begun."""
    fit_loop(
        workloads.tensors(settings["data"], "train"),
        settings,
        max_seconds=LONGEST_S,
        evaluate=workloads.tensors(settings["data"], "test"),
        run_dir=settings["run_dir"],
        monitors=[_announcing(settings["seconds"])],
    )
    raise RuntimeError(f"nobody preempted the training for {LONGEST_S:.0f} s")


def _announcing(after_s: float) -> Callable[[Event], Any]:
    said = False

    def monitor(event: Event) -> None:
        nonlocal said
        if isinstance(event, Tick) and event.seconds >= after_s and not said:
            said = True
            print("trains", flush=True)

    return monitor


# --- beginning ---


def first_step(settings: Settings) -> Values:
    """Seconds of calls of ``fit`` that end after one step of each worker: the first of a program, the next.

    The rest of a call is in it: checks of the arguments, a trial step, sharing the data, the end.
    """
    inputs, targets = workloads.tensors(settings["data"], "train")
    workers, size = settings["workers"], settings["batch_size"]
    seconds = []
    for _ in range(2):
        model = workloads.build(settings["model"], settings["seed"])
        began = time.perf_counter()
        freewheel.fit(
            model,
            (inputs, targets),
            loss=nn.CrossEntropyLoss(),
            method=workloads.method({"lr": workloads.LR, **settings}),
            engine=settings["engine"],
            workers=workers,
            batch_size=size,
            max_samples=workers * size,
            seed=settings["seed"],
        )
        seconds.append(time.perf_counter() - began)
    return {"first_s": seconds[0], "next_s": seconds[1]}

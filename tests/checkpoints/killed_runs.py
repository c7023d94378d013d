"""Trains in forked children that are killed at random moments; prints what their checkpoints were, as JSON.

Usage: killed_runs.py FOLDER KILLS. In a program of its own, because a process with threads cannot be forked.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import freewheel
from freewheel.checkpoints.folder import CHECKPOINTS, newest, ordered, read
from freewheel.checkpoints.saver import Saver

SAMPLES, BATCH, EPOCHS = 512, 8, 100


def network_and_data(samples: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The same in every life."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    inputs = torch.randn(samples, 8)
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 3))
    return model, (inputs, inputs[:, :3].argmax(1))


def train(**settings: Any) -> freewheel.Result:
    return freewheel.fit(
        *network_and_data(SAMPLES),
        loss=nn.CrossEntropyLoss(),
        method=freewheel.stale_synchronous(1, 0.02),
        engine="serial",
        workers=2,
        batch_size=BATCH,
        epochs=EPOCHS,
        **settings,
    )


def begin(run: Path) -> int:
    """Starts or resumes the run in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    found = ordered(run / CHECKPOINTS)
    if not found and (run / "events.jsonl").exists():
        (run / "events.jsonl").unlink()  # killed before its first checkpoint
    setattr(Saver, "is_due", lambda saver, seconds: not saver._is_writing())  # noqa: B010  # one after the other
    train(run_dir=run, resume=run if found else None)
    os._exit(0)


def kill_at_random(run: Path, child: int, draw: random.Random) -> bool:
    """Kills the child some time after it has written something; False if it had come to its end."""
    before = {path.name for path in ordered(run / CHECKPOINTS)}
    while {path.name for path in ordered(run / CHECKPOINTS)} <= before:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def steps_of(run: Path) -> list[int]:
    """The checkpoints that are complete; reading one that is not raises an error."""
    return [int(read(path).folder.name) for path in ordered(run / CHECKPOINTS)]


def main(folder: str, kills: str) -> None:
    run, draw = Path(folder), random.Random(3)
    seen: list[list[int]] = []
    for _ in range(int(kills)):
        if not kill_at_random(run, begin(run), draw):
            break
        seen.append(steps_of(run))
    killed, unfinished = len(seen), len(list((run / CHECKPOINTS).glob(".*")))
    resumed = train(run_dir=run, resume=run)
    whole = train()
    same = all(
        torch.equal(a, b)
        for a, b in zip(resumed.module.state_dict().values(), whole.module.state_dict().values(), strict=True)
    )
    print(
        json.dumps(
            {
                "killed": killed,
                "seen": seen,
                "unfinished": unfinished,
                "left": [path.name for path in (run / CHECKPOINTS).glob(".*")],
                "same": same and resumed.ledger == whole.ledger,
                "newest": newest(run).folder.name,
                "steps": whole.steps,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A run that is killed at any moment goes on from a complete checkpoint; SIGTERM writes one more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from freewheel.checkpoints.folder import newest

KILLS = 20


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_is_never_corrupt_and_ends_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    program = Path(__file__).with_name("killed_runs.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), str(tmp_path / "run"), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] >= KILLS // 2  # a fast disk may let it come to its end before the last
    newest_steps = [steps[0] for steps in found["seen"]]
    assert newest_steps == sorted(set(newest_steps))  # every life went on from the last checkpoint before it
    assert found["left"] == []
    assert found["newest"] == str(found["steps"])
    assert found["same"]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kills"), [("hogwild", KILLS), ("synchronous", 6)])
def test_main_processes_that_are_killed_leave_nothing_but_complete_checkpoints(
    method: str, kills: int, tmp_path: Path
) -> None:
    program = Path(__file__).with_name("killed_main_processes.py")
    # Sockets of fork servers stay behind; the folder of a test has too long a name for them.
    with tempfile.TemporaryDirectory(prefix="freewheel-") as temporary:
        done = subprocess.run(
            [sys.executable, "-W", "error", str(program), method, str(tmp_path), str(kills)],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env={**os.environ, "TMPDIR": temporary},
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    lives, places, left = found["lives"], found["places"], found["left"]
    assert len(places) == kills
    assert [one["processes"] + one["holders"] for one in left] == [[]] * kills
    assert sum(one["segments"] > 0 for one in left) >= kills // 2  # else there was nothing to be left
    steps = [place["steps"] for place in places]
    assert steps == sorted(steps)
    assert len(set(steps)) >= kills // 2
    for life, place in zip(lives[:-1], places, strict=True):
        assert place["steps"] >= life["written"]  # what it was told to be on the disk is there
    for life, place in zip(lives[1:], places, strict=True):
        assert life["resumed"] in ([], [[place["steps"], place["samples"]]])  # or killed before it said so
    assert lives[-1]["resumed"]
    assert found["unfinished"] == []
    assert (found["reason"], found["newest"]) == ("epochs", str(found["steps"]))
    assert found["used"] == {"1": found["steps"]}  # every batch, once
    assert found["samples"] == found["planned"]
    assert found["same"] or method != "synchronous"


TERMINATED = """
import multiprocessing, os, signal, sys, torch, freewheel
inputs = torch.randn(256, 4)
steps, main = 0, os.getpid()

def loss(prediction, target):
    global steps
    steps += prediction.requires_grad
    if steps == 20 and multiprocessing.current_process().name in ("MainProcess", "freewheel-0"):
        os.kill(main, signal.SIGTERM)
    return torch.nn.functional.cross_entropy(prediction, target)

freewheel.fit(torch.nn.Linear(4, 2), (inputs, (inputs.sum(1) > 0).long()), loss=loss, workers=2, epochs=500,
              engine=sys.argv[2], run_dir=sys.argv[1])
print("not reached")
"""


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_sigterm_writes_a_checkpoint_and_the_weights_and_ends_the_program(
    engine: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", TERMINATED, str(run), engine],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "not reached" not in done.stdout
    assert 0 < int(newest(run).folder.name) < 8000
    assert (run / "weights.safetensors").is_file()
    assert '"reason": "interrupted"' in (run / "events.jsonl").read_text()

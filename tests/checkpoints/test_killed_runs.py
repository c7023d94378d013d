"""A run that is killed at any moment goes on from a complete checkpoint; SIGTERM writes one more."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
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

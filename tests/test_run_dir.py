"""The folder of a run: one run at a time writes there, and a job that is refused leaves none behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel import rundir
from freewheel.errors import ConfigurationError

X, Y = torch.randn(32, 4), torch.zeros(32, dtype=torch.long)
HOLDER = """
import sys
from pathlib import Path
from freewheel.rundir import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def fit(**more: Any) -> freewheel.Result:
    arguments: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "workers": 2, **more}
    return freewheel.fit(nn.Linear(4, 2), (X, Y), **arguments)


def test_a_run_in_another_process_keeps_the_folder_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match=r"`run_dir` .* is being written to by a run that still"):
            fit(run_dir=folder)
        holder.kill()
        holder.wait()
        assert fit(run_dir=folder).samples == 32


def test_a_run_within_a_run_cannot_write_to_its_folder(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def monitor(event: freewheel.events.Event) -> None:
        if isinstance(event, freewheel.events.RunStarted):
            try:
                fit(run_dir=tmp_path / "run")
            except ConfigurationError as error:
                errors.append(error)

    fit(run_dir=tmp_path / "run", monitors=[monitor])
    assert len(errors) == 1


def test_the_folder_is_free_after_an_error(tmp_path: Path) -> None:
    def monitor(event: freewheel.events.Event) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fit(run_dir=tmp_path / "run", monitors=[monitor])
    with rundir.held(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(handle: int, operation: int) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert fit(run_dir=tmp_path / "run").samples == 32


def test_what_cannot_be_sent_to_processes_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    lock = threading.Lock()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        with lock:
            return nn.functional.cross_entropy(prediction, target)

    with pytest.raises(ConfigurationError, match="`loss`, `step` or `metrics` cannot be sent"):
        fit(engine="processes", loss=loss, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""The last checkpoint of a run is written though a worker fails in it, or is being replaced just then."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import freewheel
from freewheel import testing
from freewheel.checkpoints.folder import newest
from freewheel.engines.processes.session import ProcessSession
from freewheel.events import Event, WorkerFailed
from freewheel.methods import Method
from freewheel.testing import inject

X = torch.randn(160, 4, generator=torch.Generator().manual_seed(1))
METHODS: dict[str, Method] = {
    "hogwild": freewheel.hogwild(0.05, 0.0),
    "synchronous": freewheel.synchronous(0.1, 0.0),
    "stale_synchronous": freewheel.stale_synchronous(2, 0.05, 0.0),
    "local_sgd": freewheel.local_sgd(0.05, 4),
}
PATIENCE_S = 60.0  # against hanging only


def fit(method: str, run: Path, **more: Any) -> freewheel.Result:
    arguments: dict[str, Any] = {"epochs": 1, **more}
    return freewheel.fit(
        nn.Linear(4, 1),
        (X, X.sum(1, keepdim=True)),
        loss=nn.MSELoss(),
        method=METHODS[method],
        engine="processes",
        workers=2,
        batch_size=8,
        run_dir=run,
        **arguments,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["kill", "fail", "hang"])
def test_a_worker_that_ends_in_the_last_checkpoint(kind: str, method: str, tmp_path: Path) -> None:
    fault = getattr(testing, kind)(1, 0, during="checkpoint")
    with inject(fault) as injected:
        result = fit(method, tmp_path, step_timeout=1.5 if kind == "hang" else None)
    assert injected.all_fired
    assert result.restarts == 1
    assert result.wall_seconds < PATIENCE_S
    assert newest(tmp_path).folder.name == str(result.steps)
    assert fit(method, tmp_path, resume=tmp_path, epochs=2).samples == 2 * len(X)


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_while_a_worker_is_being_replaced(method: str, tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, WorkerFailed):
            os.kill(os.getpid(), signal.SIGINT)

    with inject(testing.kill(1, 5)):
        result = fit(method, tmp_path, epochs=10**4, monitors=[interrupt])
    assert result.reason == "interrupted"
    assert 5 <= int(newest(tmp_path).folder.name) <= result.steps


@pytest.mark.parametrize("method", METHODS)
def test_time_that_is_up_while_a_worker_is_being_replaced(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Event] = []

    def out_of_time(session: ProcessSession) -> bool:
        session.reason = "max_seconds" if failed else None
        return bool(failed)

    def listen(event: Event) -> None:
        if isinstance(event, WorkerFailed):
            failed.append(event)

    monkeypatch.setattr(ProcessSession, "out_of_time", out_of_time)
    with inject(testing.kill(1, 5)):
        result = fit(method, tmp_path, epochs=10**4, max_seconds=PATIENCE_S, monitors=[listen])
    assert result.reason == "max_seconds"
    assert 5 <= int(newest(tmp_path).folder.name) <= result.steps

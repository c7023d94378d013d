"""Checkpoints of runs on threads, taken while workers compute."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutInStep, assert_equal, checkpoints
from laws import ALL, METHODS, ROUNDS, adds_up, blobs, leases_of, network
from torch import Tensor, nn

import freewheel
from freewheel.checkpoints.folder import read
from freewheel.events import Steps
from freewheel.methods import Method
from freewheel.rules import adam, average, chain, sgd

SYNCHRONOUS: dict[str, Method] = {
    **{name: METHODS[name] for name in ROUNDS},
    "momentum": freewheel.synchronous(0.05, momentum=0.9),
    "adam": freewheel.synchronous(rule=adam(0.01)),
}


def fit(
    method: Method, cut: CutInStep | None = None, dropout: float = 0.0, **settings: Any
) -> freewheel.Result:
    loss = (cut or CutInStep()).loss
    arguments = {
        "batch_size": 16,
        "epochs": 2,
        "evaluate": blobs(),
        "evaluate_every": 120,
        "seed": 5,
        **settings,
    }
    return freewheel.fit(network(dropout=dropout), blobs(), loss=loss, method=method, **arguments)


def resumed_in_the_middle(
    method: Method, step: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[freewheel.Result, Counter[int], int]:
    """The run that goes on, how often it computed each lease, and the steps of the checkpoint."""
    cut = CutInStep()
    with monkeypatch.context() as patch:
        cut.patch(patch, step)
        fit(method, cut, run_dir=folder, **settings)
    steps = min(checkpoints(folder))
    assert steps < 30
    leases: Counter[int] = Counter()
    settings = {**settings, "resume": checkpoints(folder)[steps], "monitors": [leases_of(leases)]}
    return fit(method, **settings), leases, steps


@pytest.mark.parametrize("step", [5, 14, 24])
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_three_synchronous_workers_go_on_bit_for_bit(
    name: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = SYNCHRONOUS[name]
    resumed, leases, steps = resumed_in_the_middle(method, step, tmp_path, monkeypatch, workers=3)
    assert leases.total() == 30 - steps
    assert_equal(resumed, fit(method, workers=3))


@pytest.mark.parametrize("name", ["synchronous", "local_sgd"])
def test_synchronous_shards_go_on_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed, _, _ = resumed_in_the_middle(ALL[name], 14, tmp_path, monkeypatch, workers=3, shards=3)
    assert_equal(resumed, fit(ALL[name], workers=3, shards=3))


ONE_WORKER: dict[str, Method] = {**METHODS, **SYNCHRONOUS}


@pytest.mark.parametrize("name", ONE_WORKER)
def test_one_worker_with_dropout_goes_on_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ONE_WORKER[name]
    resumed, leases, steps = resumed_in_the_middle(method, 11, tmp_path, monkeypatch, workers=1, dropout=0.3)
    assert (steps, leases.total()) == (11, 19)
    assert_equal(resumed, fit(method, workers=1, dropout=0.3))


RACING = {
    **{name: ALL[name] for name in ALL if name not in ROUNDS},
    "hogwild-shards": freewheel.hogwild(0.05),
    "hogwild-average-expire": freewheel.hogwild(rule=chain(average(4), sgd(0.05))),
}


@pytest.mark.parametrize("name", RACING)
def test_workers_that_race_compute_every_batch_once_all_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = 3 if name.endswith("shards") else 1
    resumed, leases, steps = resumed_in_the_middle(
        RACING[name], 11, tmp_path, monkeypatch, workers=3, shards=shards
    )
    assert set(leases.values()) == {1}
    assert leases.total() == 30 - steps
    assert (resumed.steps, resumed.samples) == (30, 480)
    assert adds_up(resumed.ledger)
    assert resumed.ledger["duplicates"] == 0
    assert torch.isfinite(torch.cat([p.flatten() for p in resumed.module.parameters()])).all()


def test_the_leases_before_a_checkpoint_and_those_after_it_are_all_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, told = CutInStep(), list[tuple[int, int, int]]()

    def note(event: object) -> None:
        if isinstance(event, Steps):
            told.extend(zip(event.worker, event.sequence, event.lease, strict=True))

    with monkeypatch.context() as patch:
        cut.patch(patch, 11)
        fit(ALL["hogwild"], cut, workers=3, run_dir=tmp_path, monitors=[note])
    first = min(checkpoints(tmp_path))
    before, told = list(told), []
    done = [worker["context"]["sequence"] for worker in read(checkpoints(tmp_path)[first]).tree["workers"]]
    fit(ALL["hogwild"], workers=3, resume=checkpoints(tmp_path)[first], monitors=[note])
    kept = [lease for worker, sequence, lease in before if sequence < done[worker]]
    assert sorted(kept + [lease for _, _, lease in told]) == list(range(30))


def test_an_interrupted_synchronous_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    once = threading.Event()

    def interrupted(prediction: Tensor, target: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread() and not once.is_set():
            once.set()
            os.kill(os.getpid(), signal.SIGINT)
        return nn.functional.cross_entropy(prediction, target)

    def run(**settings: Any) -> freewheel.Result:
        method = freewheel.synchronous(0.05, momentum=0.9)
        arguments = {"workers": 3, "batch_size": 4, "epochs": 2, "evaluate": blobs(), **settings}
        return freewheel.fit(network(dropout=0.0), blobs(), loss=interrupted, method=method, **arguments)

    cut = run(run_dir=tmp_path)
    assert cut.reason == "interrupted"
    assert cut.steps < 120
    assert len(checkpoints(tmp_path)) == 1
    assert_equal(run(resume=tmp_path, run_dir=tmp_path), run())


def test_a_worker_that_fails_leaves_the_checkpoints_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = CutInStep()
    cut.patch(monkeypatch, 11)

    def failing(prediction: Tensor, target: Tensor) -> Tensor:
        if cut.asked.is_set():
            raise ArithmeticError("out of numbers")
        return cut.loss(prediction, target)

    with pytest.raises(freewheel.WorkerError, match="out of numbers"):
        freewheel.fit(network(), blobs(), loss=failing, workers=3, epochs=50, run_dir=tmp_path)
    assert not list(tmp_path.glob("checkpoints/.*"))

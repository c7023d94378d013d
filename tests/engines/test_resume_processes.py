"""Checkpoints of runs on processes, taken while workers compute."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import assert_equal, checkpoints
from laws import ALL, KINDS, METHODS, ROUNDS, adds_up, blobs, leases_of, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

import freewheel
from freewheel.checkpoints.saver import Saver
from freewheel.engines.processes.session import ProcessSession
from freewheel.errors import CheckpointError
from freewheel.events import CheckpointWritten, Event, WorkerRestarted
from freewheel.methods import Method
from freewheel.rules import adam

STEP_S = 0.012  # long enough for the main process to look up in the middle
SYNCHRONOUS: dict[str, Method] = {
    **{name: METHODS[name] for name in ROUNDS},
    "momentum": freewheel.synchronous(0.05, momentum=0.9),
    "adam": freewheel.synchronous(rule=adam(0.01)),
}
SOME = (*KINDS, "hogwild-layer", "hogwild-average", "downpour-half", "stale_synchronous-eight_bit")
ONE_WORKER: dict[str, Method] = {name: METHODS[name] for name in SOME if name in METHODS}
RACING = {name: ALL[name] for name in SOME if name not in ROUNDS}


def slow(prediction: Tensor, target: Tensor) -> Tensor:
    if multiprocessing.parent_process() is not None:
        time.sleep(STEP_S)
    return nn.functional.cross_entropy(prediction, target)


def fit(method: Method | str, dropout: float = 0.0, data: Any = None, **settings: Any) -> freewheel.Result:
    arguments: dict[str, Any] = {
        "loss": nn.CrossEntropyLoss(),
        "batch_size": 16,
        "epochs": 2,
        "evaluate": blobs(),
        "evaluate_every": 120,
        "seed": 5,
        "engine": "processes",
        **settings,
    }
    chosen = ALL[method] if isinstance(method, str) else method
    return freewheel.fit(
        network(dropout=dropout), blobs() if data is None else data, method=chosen, **arguments
    )


def cut_in_the_middle(
    method: Method | str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> int:
    """A run with a checkpoint somewhere before its end; returns the steps of that."""
    taken: list[int] = []

    def wants_cut(session: ProcessSession) -> bool:
        session.record.drain()
        steps = session.record.done().steps
        if taken or steps < 5:
            return False
        taken.append(steps)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(ProcessSession, "wants_cut", wants_cut)
        fit(method, loss=slow, run_dir=folder, **settings)
    steps = min(checkpoints(folder))
    assert 0 < steps < 30
    return steps


def resumed(
    method: Method | str, folder: Path, steps: int, **settings: Any
) -> tuple[freewheel.Result, Counter[int]]:
    """The run that goes on from there, and how often it computed each batch."""
    leases: Counter[int] = Counter()
    arguments: dict[str, Any] = {"loss": slow, "monitors": [leases_of(leases)], **settings}
    found = fit(method, resume=checkpoints(folder)[steps], **arguments)
    return found, leases


class Interrupting:
    """Batches that are read once an epoch; Ctrl-C comes while one is read."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = blobs()
        for number in range(15):
            if number == self.at:
                self.at = None
                signal.raise_signal(signal.SIGINT)
            yield inputs[16 * number : 16 * number + 16], targets[16 * number : 16 * number + 16]


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_while_data_are_read_loses_none_of_them(workers: int, tmp_path: Path) -> None:
    before: Counter[int] = Counter()
    settings: dict[str, Any] = {"workers": workers, "run_dir": tmp_path, "epochs": 1, "loss": slow}
    cut = fit("hogwild", data=Interrupting(7), monitors=[leases_of(before)], **settings)
    assert cut.reason == "interrupted"
    after: Counter[int] = Counter()
    fit("hogwild", data=Interrupting(None), monitors=[leases_of(after)], resume=tmp_path, **settings)
    assert before + after == Counter(range(15))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_three_synchronous_workers_go_on_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = cut_in_the_middle(SYNCHRONOUS[name], tmp_path, monkeypatch, workers=3)
    found, leases = resumed(SYNCHRONOUS[name], tmp_path, steps, workers=3)
    assert leases.total() == 30 - steps
    assert_equal(found, fit(SYNCHRONOUS[name], workers=3))


@pytest.mark.parametrize("name", ONE_WORKER)
def test_one_worker_with_dropout_goes_on_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"workers": 1, "dropout": 0.3}
    steps = cut_in_the_middle(ONE_WORKER[name], tmp_path, monkeypatch, **settings)
    found, leases = resumed(ONE_WORKER[name], tmp_path, steps, **settings)
    assert leases.total() == 30 - steps
    assert_equal(found, fit(ONE_WORKER[name], **settings))


@pytest.mark.parametrize("name", RACING)
def test_workers_that_race_compute_every_batch_once_all_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = cut_in_the_middle(name, tmp_path, monkeypatch, workers=3)
    found, leases = resumed(name, tmp_path, steps, workers=3)
    assert set(leases.values()) == {1}
    assert leases.total() == 30 - steps
    assert (found.steps, found.samples) == (30, 480)
    assert adds_up(found.ledger)
    assert found.ledger["duplicates"] == 0
    assert torch.isfinite(torch.cat([p.flatten() for p in found.module.parameters()])).all()


@pytest.mark.parametrize("name", ["hogwild", "stale_synchronous", "synchronous"])
def test_a_loader_goes_on_where_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loader() -> DataLoader[Any]:
        pairs: Any = list(zip(*blobs(), strict=True))
        return DataLoader(pairs, 16, sampler=range(240))

    steps = cut_in_the_middle(name, tmp_path, monkeypatch, workers=2, data=loader())
    found, leases = resumed(name, tmp_path, steps, workers=2, data=loader())
    assert (found.steps, found.samples) == (30, 480)
    assert leases.total() == 30 - steps


def test_a_run_goes_on_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = freewheel.synchronous(0.05, momentum=0.9)
    every_epoch: dict[str, Any] = {"workers": 3, "evaluate_every": 240}
    whole = fit(method, epochs=4, **every_epoch)
    fit(method, epochs=1, run_dir=tmp_path, **every_epoch)
    for epochs in (2, 4):
        last = fit(method, epochs=epochs, run_dir=tmp_path, resume=tmp_path, **every_epoch)
    assert_equal(last, whole)


def test_an_interrupted_synchronous_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    once = tmp_path / "once"

    def interrupted(prediction: Tensor, target: Tensor) -> Tensor:
        if multiprocessing.current_process().name == "freewheel-1" and not once.exists():
            once.touch()
            os.kill(os.getppid() if os.getppid() == main else main, signal.SIGINT)
        return nn.functional.cross_entropy(prediction, target)

    main = os.getpid()
    settings: dict[str, Any] = {"workers": 3, "batch_size": 4, "loss": interrupted}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cut = fit("synchronous", run_dir=tmp_path / "run", **settings)
    finally:
        signal.signal(signal.SIGINT, before)
    assert cut.reason == "interrupted"
    assert cut.steps < 120
    found = fit("synchronous", resume=tmp_path / "run", run_dir=tmp_path / "run", **settings)
    assert_equal(found, fit("synchronous", **settings))


@pytest.mark.parametrize("name", ["hogwild", "synchronous", "stale_synchronous"])
def test_a_worker_that_dies_while_checkpoints_are_taken_stops_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(prediction: Tensor, target: Tensor) -> Tensor:
        own = multiprocessing.current_process().name
        if own.startswith("freewheel-"):
            time.sleep(STEP_S / 3)
            if own == "freewheel-1" and next(steps) % 7 == 6:
                os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(prediction, target)

    steps = itertools.count()
    monkeypatch.setattr(Saver, "is_due", lambda saver, seconds: not saver._is_writing())
    events: list[Event] = []
    result = fit(
        name, loss=dying, workers=2, epochs=6, run_dir=tmp_path, max_restarts=99, monitors=[events.append]
    )
    assert result.reason == "epochs"
    assert sum(isinstance(event, WorkerRestarted) for event in events) >= 2
    assert sum(isinstance(event, CheckpointWritten) for event in events) >= 2
    goes_on = fit(name, loss=dying, workers=2, epochs=7, resume=tmp_path, max_restarts=99)
    assert goes_on.samples >= 7 * 240


def test_a_run_goes_on_only_on_its_engine(tmp_path: Path) -> None:
    fit("hogwild", workers=2, run_dir=tmp_path)
    with pytest.raises(CheckpointError, match='`engine` was "processes", got "threads"'):
        fit("hogwild", workers=2, engine="threads", resume=tmp_path)

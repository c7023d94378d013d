"""Every fault, on every method, at every moment: the run ends at the optimum, and the book adds up.

Least squares without noise: whatever the order of the batches, and however often one is used, the weights
that the targets were made with are the only ones with no loss.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from laws import ALL, BACKUP, KINDS
from torch import Tensor, nn

import freewheel
from freewheel import rules, testing
from freewheel.checkpoints.folder import CHECKPOINTS, ordered, read
from freewheel.checkpoints.saver import Saver
from freewheel.errors import ConfigurationError
from freewheel.events import Event, Steps
from freewheel.methods import Method
from freewheel.testing import Fault, inject

SAMPLES, BATCH, EPOCHS = 160, 8, 15
STEP_S = 0.001
WANTED = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
X = torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(1))
DATA = X, X @ WANTED.T
START = torch.zeros(1, 4)

METHODS: dict[str, Method] = {
    "hogwild": freewheel.hogwild(0.05, 0.0),
    "hogwild-layer": freewheel.hogwild(0.05, 0.0, granularity="layer"),
    "hogwild-average": freewheel.hogwild(rule=rules.chain(rules.average(2), rules.sgd(0.1))),
    "synchronous": freewheel.synchronous(0.1, 0.0),
    "stale_synchronous": freewheel.stale_synchronous(2, 0.05, 0.0),
    "stale_synchronous-in_flight": freewheel.stale_synchronous(2, 0.05, 0.0, in_flight=1),
    "delay_compensated": freewheel.delay_compensated(0.05),
    "downpour": freewheel.downpour(0.5, 2, 3),
    "elastic_averaging": freewheel.elastic_averaging(0.05, period=3),
    "local_sgd": freewheel.local_sgd(0.05, 4),
    "parallel_sgd": freewheel.parallel_sgd(0.05, momentum=0.0),
    "diloco": freewheel.diloco(4, inner=rules.sgd(0.05)),
}
GUARDED: dict[str, Method] = {
    "hogwild": freewheel.hogwild(rule=rules.chain(rules.finite(), rules.clip(20.0), rules.sgd(0.05))),
    "synchronous": freewheel.synchronous(rule=rules.chain(rules.finite(), rules.clip(20.0), rules.sgd(0.1))),
    "stale_synchronous": freewheel.stale_synchronous(
        2, rule=rules.chain(rules.finite(), rules.clip(20.0), rules.sgd(0.05))
    ),
}
"""What bears updates that are not finite, or far too large."""

PUSHES = {**dict.fromkeys(METHODS, 12), "local_sgd": 11, "diloco": 11}
"""A step in the middle that ends in a push."""
del PUSHES["parallel_sgd"]  # which pushes when the run is over, when no step is under way

MOMENTS = {"first": 0, "middle": 12}
DURING: tuple[testing.faults.During, ...] = ("step", "push", "acknowledge")


def _deaths() -> list[Any]:
    """(method, fault) for everything that ends a worker."""
    found = []
    for name in METHODS:
        thorough = name in ("hogwild", "synchronous", "stale_synchronous", "downpour")
        for moment, step in MOMENTS.items():
            for during in DURING if thorough else DURING[:2]:
                found.append((name, testing.kill(1, step, during), f"kill {moment} {during}"))
        found.append((name, testing.fail(1, MOMENTS["middle"], "push"), "fail middle push"))
        if thorough:
            found.append((name, testing.segfault(0, 5), "segfault"))
            found.append((name, testing.leave(0, 5, 3), "leave"))
            found.append((name, testing.hang(1, 5), "hang"))
            found.append((name, testing.wrong_shape(1, 5), "wrong shape"))
    return [pytest.param(name, fault, id=f"{name}: {label}") for name, fault, label in found]


def _exceptions() -> list[Any]:
    """(method, fault) for every exception of a worker on threads."""
    return [
        pytest.param(name, testing.fail(1, step, during), id=f"{name}: fail {moment} {during}")
        for name in METHODS
        for moment, step in MOMENTS.items()
        for during in DURING
    ]


class Ran:
    """A run with a fault, and what was heard of it."""

    def __init__(self, method: Method, fault: Fault, engine: str, **more: Any) -> None:
        self.events: list[Event] = []
        arguments: dict[str, Any] = {"loss": nn.MSELoss(), **more}
        module = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            module.weight.copy_(START)
        with inject(fault) as injected:
            self.result = freewheel.fit(
                module,
                DATA,
                method=method,
                engine=engine,
                workers=2,
                batch_size=BATCH,
                epochs=EPOCHS,
                monitors=[self.events.append],
                **arguments,
            )
        self.injected = injected
        self.weight: Tensor = module.weight.detach()

    def check(self) -> None:
        """The optimum, the fault, the ledger, the data; nothing is left."""
        assert self.injected.all_fired
        assert float((self.weight - WANTED).norm()) < 0.05 * float((START - WANTED).norm())
        ledger = self.result.ledger
        dropped = sum(ledger["dropped"].values())
        assert ledger["pushed"] == ledger["applied"] + ledger["absorbed"] + ledger["pending"] + dropped
        leases = Counter(n for event in self.events if isinstance(event, Steps) for n in event.lease)
        assert set(leases) == set(range(EPOCHS * SAMPLES // BATCH))
        assert not _workers()
        assert threading.active_count() == 1
        assert not [name for name in os.listdir("/dev/shm") if "freewheel" in name]


def _workers() -> list[psutil.Process]:
    """Worker processes: children of the fork server."""
    mine = psutil.Process()
    return [child for child in mine.children(recursive=True) if child.ppid() != mine.pid]


@pytest.mark.parametrize(("method", "fault"), _deaths())
def test_a_worker_that_ends(method: str, fault: Fault) -> None:
    ran = Ran(METHODS[method], fault, "processes", step_timeout=1.5 if fault.kind == "hang" else None)
    ran.check()
    assert ran.result.restarts == 1


@pytest.mark.parametrize(("method", "fault"), _exceptions())
def test_a_thread_that_raises(method: str, fault: Fault) -> None:
    ran = Ran(METHODS[method], fault, "threads")
    ran.check()
    assert ran.result.restarts == 1
    assert ran.result.samples == EPOCHS * SAMPLES
    assert not freewheel.audit(ran.events).violations


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "downpour"])
def test_a_gradient_of_the_wrong_shape_ends_a_run_on_threads(method: str) -> None:
    with pytest.raises(ConfigurationError, match="must have its shape"):
        Ran(METHODS[method], testing.wrong_shape(1, PUSHES[method]), "threads")


def _endings_in_checkpoints() -> list[Any]:
    """(method, fault) for everything that ends a worker while it hands over what it holds."""
    during: testing.faults.During = "checkpoint"
    first, middle = MOMENTS["first"], MOMENTS["middle"]
    found = []
    for name in METHODS:
        for moment, step in MOMENTS.items():
            found.append((name, testing.kill(1, step, during), f"kill {moment}"))
        found.append((name, testing.segfault(1, first, during), "segfault first"))
        found.append((name, testing.leave(1, middle, 3, during), "leave middle"))
        found.append((name, testing.fail(1, middle, during), "fail middle"))
        found.append((name, testing.hang(1, middle, during=during), "hang middle"))
    return [pytest.param(name, fault, id=f"{name}: {label}") for name, fault, label in found]


def slow(prediction: Tensor, target: Tensor) -> Tensor:
    """Several checkpoints are due before the run is over."""
    if multiprocessing.parent_process() is not None:
        time.sleep(STEP_S)
    return nn.functional.mse_loss(prediction, target)


def check_checkpoints(run: Path) -> None:
    """There are some, nothing of another is left, and all are complete."""
    kept = ordered(run / CHECKPOINTS)
    assert kept
    assert not list((run / CHECKPOINTS).glob(".*"))
    for folder in kept:
        read(folder)  # raises an error for one that is not complete


@pytest.mark.parametrize(("method", "fault"), _endings_in_checkpoints())
def test_a_worker_that_ends_during_a_checkpoint(
    method: str, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver, "is_due", lambda saver, seconds: not saver._is_writing())
    timeout = 1.5 if fault.kind == "hang" else None
    ran = Ran(METHODS[method], fault, "processes", run_dir=tmp_path, step_timeout=timeout, loss=slow)
    ran.check()
    assert ran.result.restarts == 1
    check_checkpoints(tmp_path)


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "local_sgd"])
def test_a_worker_that_is_slow_during_a_checkpoint_is_waited_for(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []

    def wants_one(saver: Saver, seconds: float) -> bool:
        taken.append(seconds)
        return len(taken) == 1

    monkeypatch.setattr(Saver, "is_due", wants_one)
    fault = testing.hang(1, 0, seconds=0.2, during="checkpoint")
    ran = Ran(METHODS[method], fault, "processes", run_dir=tmp_path)
    ran.check()
    assert ran.result.restarts == 0
    check_checkpoints(tmp_path)
    leases = Counter(n for event in ran.events if isinstance(event, Steps) for n in event.lease)
    assert set(leases.values()) == {1}


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("method", GUARDED)
@pytest.mark.parametrize("kind", [testing.nan, testing.garbage])
def test_a_push_that_is_spoiled(kind: Any, method: str, moment: str, engine: str) -> None:
    ran = Ran(GUARDED[method], kind(1, MOMENTS[moment]), engine)
    ran.check()
    assert ran.result.restarts == 0


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("method", PUSHES)
@pytest.mark.parametrize("kind", [testing.duplicate, testing.stale])
def test_a_push_that_comes_twice(kind: Any, method: str, engine: str) -> None:
    ran = Ran(METHODS[method], kind(1, PUSHES[method]), engine)
    ran.check()
    assert ran.result.ledger["duplicates"] == 1


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_a_worker_that_is_slow(method: str, engine: str) -> None:
    Ran(METHODS[method], testing.hang(1, 5, seconds=0.3), engine).check()


def test_the_matrix_has_a_method_of_each_structure(tmp_path: Path) -> None:
    structures = {(m.rounds, m.gate.open, m.exchange is None, m.leases) for m in METHODS.values()}
    assert structures >= {
        (m.rounds, m.gate.open, m.exchange is None, m.leases)
        for name, m in ALL.items()
        if name in KINDS and name not in BACKUP
    }

"""How runs end when something goes wrong: every thread stops, and the module is the user's again."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel.events import Evaluated, Event, RunFinished, RunStarted, Tick

ENGINES = ("serial", "threads", "processes")
METHODS = ("hogwild", "synchronous")


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)


def run(model: nn.Module, **arguments: Any) -> freewheel.Result:
    settings = {"loss": nn.CrossEntropyLoss(), "workers": 3, "batch_size": 4, "epochs": 2, **arguments}
    return freewheel.fit(model, data(), **settings)


def is_free(model: nn.Module) -> bool:
    """Its weights are tensors of their own, not views of a shared vector."""
    return all(p.untyped_storage().nbytes() == 4 * p.numel() for p in model.parameters())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [RunStarted, Tick, Evaluated])
def test_a_monitor_that_raises_ends_the_run_and_the_others_hear_the_end(
    engine: str, method: str, kind: type[Any]
) -> None:
    seen: list[str] = []

    def raises(event: Event) -> None:
        if isinstance(event, kind | RunFinished):
            raise OSError("no space")

    model = nn.Linear(4, 3)
    monitors = [raises, lambda event: seen.append(type(event).__name__)]
    with pytest.raises(OSError, match="no space"):
        run(model, engine=engine, method=method, monitors=monitors, evaluate=data())
    assert seen[-1] == "RunFinished"
    assert threading.active_count() == 1
    assert is_free(model)


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_while_workers_train_lets_them_finish_their_step(method: str, engine: str) -> None:
    """Raised where the interpreter raises it: in the main thread, while it waits."""

    def interrupt(event: Event) -> None:
        if isinstance(event, Tick):
            raise KeyboardInterrupt

    model = nn.Linear(4, 3)
    result = run(model, engine=engine, method=method, monitors=[interrupt], epochs=None, max_seconds=60)
    assert result.reason == "interrupted"
    assert result.samples > 0
    assert result.ledger["pending"] == 0
    assert result.ledger["applied"] == result.steps
    assert threading.active_count() == 1
    assert is_free(model)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_ctrl_c_does_without_the_last_evaluation(engine: str) -> None:
    calls = iter(range(100))

    def evaluate(module: nn.Module) -> dict[str, float]:
        if next(calls) >= 1:  # the first call is the check before the run
            raise KeyboardInterrupt
        return {"accuracy": 0.0}

    model = nn.Linear(4, 3)
    result = run(model, engine=engine, evaluate=evaluate)
    assert result.reason == "interrupted"
    assert result.samples == 64
    assert threading.active_count() == 1
    assert is_free(model)


def test_a_thread_that_cannot_start_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def limited(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    model = nn.Linear(4, 3)
    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        run(model)
    monkeypatch.undo()
    assert threading.active_count() == 1
    assert is_free(model)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_of_one_worker_wakes_those_that_wait_at_a_gate(method: str) -> None:
    failing = threading.Event()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        name = threading.current_thread().name
        if name == "freewheel-1":
            failing.set()
            raise ValueError("boom")
        if name.startswith("freewheel"):
            failing.wait(30)  # or the others could do all the work before this one has begun
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    model = nn.Linear(4, 3)
    with pytest.raises(freewheel.WorkerError, match=r"worker 1 .* boom"):
        run(model, loss=None, step=step, method=method, on_error="stop")
    assert threading.active_count() == 1
    assert is_free(model)


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_replicas_are_freed_with_the_run(engine: str) -> None:
    import gc
    import weakref

    replicas: list[weakref.ref[nn.Module]] = []

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        replicas.append(weakref.ref(module))
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    result = run(
        nn.Linear(4, 3), loss=None, step=step, engine=engine, method=freewheel.hogwild(granularity="layer")
    )
    gc.collect()
    assert result.steps == 32
    assert all(replica() is None for replica in replicas)

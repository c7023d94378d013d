"""Laws that every engine and method keeps, beside those with a file of their own."""

from __future__ import annotations

import threading

import pytest
import torch
from laws import ALL, ENGINES, KINDS, LIVE, METHODS, blobs, network, state, train
from torch import Tensor, nn

import freewheel
from freewheel.rules import adam


@pytest.mark.parametrize("engine", ["serial", "simulated"])
@pytest.mark.parametrize("method", ["hogwild", "hogwild-layer", "stale_synchronous", "delay_compensated"])
def test_equal_workers_are_stale_by_one_update_of_every_other(engine: str, method: str) -> None:
    result = train(network(), METHODS[method], engine, workers=4, batch_size=20, epochs=1)
    assert result.staleness == {0: 1, 1: 1, 2: 1, 3: 9}


@pytest.mark.parametrize("method", ["synchronous", "synchronous-layer", "synchronous-top_k"])
@pytest.mark.parametrize("engine", ENGINES)
def test_synchronous_is_never_stale(engine: str, method: str) -> None:
    assert set(train(network(), METHODS[method], engine, workers=3).staleness) == {0}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", KINDS)
def test_two_workers_learn(engine: str, method: str) -> None:
    plain, trained = network(dropout=0.0), network(dropout=0.0)
    before = train(plain, ALL[method], engine, workers=2, max_samples=1).metrics["accuracy"]
    result = train(trained, ALL[method], engine, workers=2, epochs=8)
    assert result.metrics["accuracy"] > max(0.5, before + 0.1)
    if method in LIVE:
        assert result.metrics["accuracy"] > 0.9


def test_other_rules_run_lock_free() -> None:
    result = train(network(), freewheel.hogwild(rule=adam(0.01)), "threads", workers=3, epochs=20)
    assert result.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("locks", ["none", "shard"])
def test_shards_with_locks_or_without_apply_every_push(locks: str) -> None:
    engine = freewheel.Threads(locks=locks)  # type: ignore[arg-type]
    for method in ("hogwild", "downpour", "elastic_averaging"):
        result = train(network(), METHODS[method], engine, workers=4, batch_size=4, shards=5)
        assert result.ledger["pushed"] == result.ledger["applied"] > 30
        assert torch.isfinite(state(result.module)).all()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", KINDS)
def test_evaluations_come_at_the_same_samples_for_all(engine: str, method: str) -> None:
    result = train(network(), ALL[method], engine, workers=3, evaluate_every=80)
    samples = [entry.samples for entry in result.history]
    if samples[-2] == samples[-1]:  # once more, after what was left at the workers
        samples.pop()
    assert samples == [80, 160, 240, 320, 400, 480]


def test_no_step_runs_during_evaluation() -> None:
    running = threading.Semaphore(0)
    seen = []

    class Watched(nn.Linear):
        def forward(self, value: Tensor) -> Tensor:
            if self.training:
                running.release()
            result = super().forward(value)
            if self.training:
                running.acquire()
            return result

    def evaluate(module: nn.Module) -> dict[str, float]:
        seen.append(running.acquire(blocking=False))
        assert not module.training
        return {"accuracy": 0.0}

    freewheel.fit(
        nn.Sequential(Watched(10, 3)),
        blobs(),
        loss=nn.CrossEntropyLoss(),
        evaluate=evaluate,
        workers=4,
        batch_size=4,
        evaluate_every=40,
        epochs=2,
    )
    assert len(seen) == 1 + 12  # the first is the check before the run
    assert not any(seen)


def test_threads_settings_and_generator_are_restored() -> None:
    modules = {engine: network() for engine in ENGINES}
    torch.set_num_threads(2)
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    for engine, module in modules.items():
        train(module, METHODS["hogwild"], engine, workers=2, intra_op_threads=1)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == 2
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [2]


def test_each_worker_computes_with_one_intra_op_thread() -> None:
    seen: set[int] = set()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            seen.add(torch.get_num_threads())
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    freewheel.fit(network(), blobs(), step=step, workers=2)
    assert seen == {1}

"""How runs end: the same on every engine, whatever the method."""

from __future__ import annotations

import threading
import traceback

import pytest
import torch
from laws import ALL, ENGINES, KINDS, SAMPLES, adds_up, blobs, network, state, train
from torch import Tensor, nn

import freewheel
from freewheel.events import Evaluated, Event


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "downpour", "diloco"])
def test_a_target_counts_when_it_holds_twice_in_a_row(engine: str, method: str) -> None:
    values = iter([0.0, 0.1, 0.9, 0.2, 0.9, 0.9, 0.9])  # the first is measured before the run
    result = freewheel.fit(
        network(),
        blobs(),
        loss=nn.CrossEntropyLoss(),
        method=ALL[method],
        engine=engine,
        workers=2,
        evaluate=lambda module: {"accuracy": next(values)},
        target=("accuracy", 0.8),
        epochs=6,
    )
    assert result.reason == "target"
    assert len(result.history) == 5
    assert result.target_seconds == result.history[3].seconds
    assert adds_up(result.ledger)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_in_a_worker_ends_the_run_with_its_place_and_traceback(
    engine: str, method: str, workers: int
) -> None:
    if workers <= ALL[method].backup:
        workers += 1
    calls = iter(range(1000))

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if next(calls) == 12:
            raise KeyError("boom")
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    seen: list[str] = []
    module = network()
    with pytest.raises(freewheel.WorkerError, match="boom") as caught:
        freewheel.fit(
            module,
            blobs(),
            step=step,
            method=ALL[method],
            engine=engine,
            workers=workers,
            epochs=3,
            on_error="stop",
            monitors=[lambda event: seen.append(type(event).__name__)],
        )
    assert isinstance(caught.value.__cause__, KeyError)
    assert 'raise KeyError("boom")' in "".join(traceback.format_exception(caught.value))
    assert 0 <= caught.value.worker < workers
    assert 0 <= caught.value.sequence < 12
    assert seen.count("WorkerFailed") == 1
    assert seen[-1] == "RunFinished"
    assert threading.active_count() == 1
    assert all(p.is_leaf and p.storage_offset() == 0 for p in module.parameters())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", KINDS)
def test_ctrl_c_ends_cleanly_and_returns_what_was_trained(engine: str, method: str) -> None:
    """The interrupt is raised in the main thread, as the interpreter does, while an event is handled."""

    def interrupt(event: Event) -> None:
        if isinstance(event, Evaluated) and event.samples == SAMPLES:
            raise KeyboardInterrupt

    module = network()
    result = train(module, ALL[method], engine, workers=2, monitors=[interrupt], epochs=3)
    assert result.reason == "interrupted"
    assert result.samples == SAMPLES
    assert not torch.equal(state(module), state(network()))
    assert adds_up(result.ledger)
    assert threading.active_count() == 1
    assert all(p.is_leaf and p.storage_offset() == 0 for p in module.parameters())


@pytest.mark.parametrize("method", [*KINDS, "downpour-warm_start", "local_sgd"])
def test_max_seconds_ends_a_simulated_run_at_that_second(method: str) -> None:
    result = train(network(), ALL[method], "simulated", workers=2, epochs=None, max_seconds=0.095)
    assert result.reason == "max_seconds"
    assert result.seconds == result.history[-1].seconds == 0.095
    steps = 13 if "warm_start" in method else 18  # of 10 ms; the first five are those of one worker
    assert result.steps == steps
    assert result.history[-1].samples == result.samples == 16 * steps
    assert adds_up(result.ledger)


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("method", KINDS)
def test_max_seconds_ends_the_run(method: str, engine: str) -> None:
    result = train(network(), ALL[method], engine, workers=2, epochs=None, max_seconds=0.05)
    assert result.reason == "max_seconds"
    assert result.samples > 0
    assert result.history[-1].samples == result.samples
    assert adds_up(result.ledger)


@pytest.mark.parametrize("engine", ["threads", "processes"])
@pytest.mark.parametrize("workers", [1, 2])
def test_epochs_that_are_over_at_once_do_not_hide_the_clock(workers: int, engine: str) -> None:
    result = train(network(), ALL["hogwild"], engine, workers=workers, epochs=50, max_seconds=1e-6)
    assert result.reason == "max_seconds"
    assert result.samples <= SAMPLES


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", KINDS)
def test_max_samples_ends_the_run(engine: str, method: str) -> None:
    result = train(network(), ALL[method], engine, workers=3, epochs=None, max_samples=100)
    assert result.reason == "max_samples"
    assert (result.samples, result.steps) == (112, 7)  # whole minibatches

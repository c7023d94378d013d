"""Laws that every engine and method keeps."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel.events import Event, Steps
from freewheel.methods import Method
from freewheel.rules import adam, sgd

ENGINES = ("serial", "threads")
METHODS: dict[str, Method] = {
    "hogwild": freewheel.hogwild(0.05, momentum=0.9),
    "hogwild-layer": freewheel.hogwild(0.05, momentum=0.9, granularity="layer"),
    "synchronous": freewheel.synchronous(0.05),
    "synchronous-layer": freewheel.synchronous(0.05, granularity="layer"),
}
SAMPLES = 240


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(SAMPLES, 10, generator=generator)
    return inputs, (inputs @ torch.randn(10, 3, generator=generator)).argmax(1)


def network(norm: bool = True, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(3)
    middle: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(10, 16), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def state(module: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in module.state_dict().values()])


def train(module: nn.Module, method: Method, engine: str, **settings: object) -> freewheel.Result:
    arguments: dict[str, object] = {"workers": 1, "batch_size": 16, "epochs": 3, **settings}
    return freewheel.fit(
        module,
        blobs(),
        loss=nn.CrossEntropyLoss(),
        method=method,
        engine=engine,
        evaluate=blobs(),
        **arguments,  # type: ignore[arg-type]
    )


def hand_written(module: nn.Module, seed: int) -> None:
    """What one worker must equal: the plain loop, over the same order of the data."""
    inputs, targets = blobs()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    source = freewheel.sources.Indexed(lambda indices: indices, SAMPLES, 16, seed)
    torch.manual_seed(seed)
    for number in range(3 * 15):
        batch = source.fetch(number).batch
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_one_worker_equals_a_hand_written_loop(engine: str, method: str) -> None:
    ours, plain = network(), network()
    with torch.random.fork_rng():
        hand_written(plain, seed=5)
    train(ours, METHODS[method], engine, seed=5)
    torch.testing.assert_close(state(ours), state(plain), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_equals_serial_bit_for_bit(method: str) -> None:
    reference = network()
    train(reference, METHODS["hogwild"], "serial")
    for engine in ENGINES:
        module = network()
        train(module, METHODS[method], engine)
        assert torch.equal(state(module), state(reference)), engine


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["synchronous", "synchronous-layer"])
@pytest.mark.parametrize("workers", [2, 4])
def test_synchronous_depends_on_the_global_batch_only(engine: str, method: str, workers: int) -> None:
    reference, module = network(norm=False, dropout=0.0), network(norm=False, dropout=0.0)
    train(reference, METHODS[method], "serial", batch_size=32)
    train(module, METHODS[method], engine, workers=workers, batch_size=32 // workers)
    torch.testing.assert_close(state(module), state(reference), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["synchronous", "synchronous-layer"])
def test_synchronous_is_the_same_on_every_engine(method: str) -> None:
    serial, threads = network(dropout=0.0), network(dropout=0.0)
    train(serial, METHODS[method], "serial", workers=3)
    train(threads, METHODS[method], "threads", workers=3)
    assert torch.equal(state(serial), state(threads))


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_serial_run_and_event_log(method: str) -> None:
    def run() -> tuple[Tensor, list[tuple[object, ...]]]:
        module, steps = network(), list[tuple[object, ...]]()

        def record(event: Event) -> None:
            if isinstance(event, Steps):
                columns = (
                    event.worker,
                    event.sequence,
                    event.lease,
                    event.samples,
                    event.loss,
                    event.staleness,
                )
                steps.extend(zip(*columns, strict=True))

        train(module, METHODS[method], "serial", workers=3, monitors=[record])
        return state(module), steps

    (first, log), (second, again) = run(), run()
    assert torch.equal(first, second)
    assert log == again
    assert len(log) == 45


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_lease_is_computed_once_and_the_ledger_adds_up(engine: str, method: str, workers: int) -> None:
    leases: Counter[int] = Counter()

    def record(event: Event) -> None:
        if isinstance(event, Steps):
            leases.update(event.lease)

    result = train(network(), METHODS[method], engine, workers=workers, monitors=[record])
    ledger = result.ledger
    assert leases == Counter(range(45))
    assert result.samples == 3 * SAMPLES == sum(worker.samples for worker in result.workers)
    assert ledger["pushed"] == ledger["applied"] == 45
    assert (ledger["pending"], ledger["absorbed"], ledger["duplicates"], ledger["dropped"]) == (0, 0, 0, {})
    assert sum(result.staleness.values()) == 45


@pytest.mark.parametrize("method", ["hogwild", "hogwild-layer"])
def test_serial_workers_are_stale_by_one_update_of_every_other(method: str) -> None:
    result = train(network(), METHODS[method], "serial", workers=4, batch_size=20, epochs=1)
    assert result.staleness == {0: 1, 1: 1, 2: 1, 3: 9}


@pytest.mark.parametrize("method", ["synchronous", "synchronous-layer"])
@pytest.mark.parametrize("engine", ENGINES)
def test_synchronous_is_never_stale(engine: str, method: str) -> None:
    assert set(train(network(), METHODS[method], engine, workers=3).staleness) == {0}


@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_stale_synchronous_gate_bounds_the_lead(granularity: str) -> None:
    """Nobody is more than the bound ahead, so each other worker can pass at most 2 bound + 1 updates."""
    workers, bound = 4, 1
    method = Method(
        "bounded",
        freewheel.bounded(bound),
        False,
        lambda _: sgd(0.05),
        granularity=granularity,  # type: ignore[arg-type]
    )
    result = train(network(), method, "threads", workers=workers, batch_size=4)
    assert max(result.staleness) <= (workers - 1) * (2 * bound + 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_workers_learn(engine: str) -> None:
    for method in METHODS.values():
        result = train(network(), method, engine, workers=2, epochs=30)
        assert result.metrics["accuracy"] > 0.9, method.name


def test_other_rules_run_lock_free() -> None:
    result = train(network(), freewheel.hogwild(rule=adam(0.01)), "threads", workers=3, epochs=20)
    assert result.metrics["accuracy"] > 0.9


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluations_come_at_the_same_samples_for_all(engine: str) -> None:
    for method in METHODS.values():
        result = train(network(), method, engine, workers=3, evaluate_every=80)
        assert [entry.samples for entry in result.history] == [80, 160, 240, 320, 400, 480, 560, 640, 720]


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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_a_target_counts_when_it_holds_twice_in_a_row(engine: str, method: str) -> None:
    values = iter([0.0, 0.1, 0.9, 0.2, 0.9, 0.9, 0.9])  # the first is measured before the run
    result = freewheel.fit(
        network(),
        blobs(),
        loss=nn.CrossEntropyLoss(),
        method=METHODS[method],
        engine=engine,
        workers=2,
        evaluate=lambda module: {"accuracy": next(values)},
        target=("accuracy", 0.8),
        epochs=6,
    )
    assert result.reason == "target"
    assert len(result.history) == 5
    assert result.target_seconds == result.history[3].seconds


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_in_a_worker_ends_the_run_with_its_place_and_traceback(
    engine: str, method: str, workers: int
) -> None:
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
            method=METHODS[method],
            engine=engine,
            workers=workers,
            epochs=3,
            monitors=[lambda event: seen.append(type(event).__name__)],
        )
    assert isinstance(caught.value.__cause__, KeyError)
    assert any(frame.name == "step" for frame in caught.traceback) or caught.value.__cause__.__traceback__
    assert 0 <= caught.value.worker < workers
    assert seen.count("WorkerFailed") == 1
    assert seen[-1] == "RunFinished"
    assert threading.active_count() == 1
    assert all(p.is_leaf and p.storage_offset() == 0 for p in module.parameters())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_ends_cleanly_and_returns_what_was_trained(engine: str, method: str) -> None:
    """The interrupt is raised in the main thread, as the interpreter does, while an event is handled."""

    def interrupt(event: Event) -> None:
        if isinstance(event, freewheel.events.Evaluated) and event.samples == SAMPLES:
            raise KeyboardInterrupt

    before = network()
    module = network()
    result = train(module, METHODS[method], engine, workers=2, monitors=[interrupt])
    assert result.reason == "interrupted"
    assert result.samples == SAMPLES
    assert not torch.equal(state(module), state(before))
    assert threading.active_count() == 1


def test_max_seconds_ends_the_run() -> None:
    for method in METHODS.values():
        result = train(network(), method, "threads", workers=2, epochs=None, max_seconds=0.2)
        assert result.reason == "max_seconds"
        assert result.samples > 0
        assert result.history[-1].samples == result.samples


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

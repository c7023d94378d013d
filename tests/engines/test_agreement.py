"""Engines agree: wherever the order of updates is decided, so are the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from laws import (
    ALL,
    ENGINES,
    IN_FLIGHT,
    LIVE,
    ROUNDS,
    SAMPLES,
    floats,
    most_shards,
    network,
    state,
    train,
)
from torch import Tensor

import freewheel
from freewheel.events import Event, Steps, from_json
from freewheel.monitors import recorder
from freewheel.rules import sgd
from freewheel.simulation import Network, ServerCost, lognormal, slow

WHOLE_RUN = 2 * SAMPLES
"""No evaluation before the end: serial workers stand still for one, simulated ones do not."""


@pytest.mark.parametrize("method", ROUNDS)
@pytest.mark.parametrize("workers", [2, 3])
def test_rounds_are_the_same_on_every_engine(method: str, workers: int) -> None:
    """Without dropout, whose generator threads share."""
    reference = network(dropout=0.0)
    settings = {"workers": workers, "evaluate_every": WHOLE_RUN}
    serial = train(reference, ALL[method], "serial", **settings)
    for engine in ENGINES[1:]:
        module = network(dropout=0.0)
        result = train(module, ALL[method], engine, **settings)
        assert torch.equal(floats(module), floats(reference)), engine
        assert result.ledger == serial.ledger


@pytest.mark.parametrize("method", ROUNDS)
def test_rounds_do_not_depend_on_who_is_faster(method: str) -> None:
    reference, module = network(dropout=0.0), network(dropout=0.0)
    settings = {"workers": 3, "evaluate_every": WHOLE_RUN}
    train(reference, ALL[method], "serial", **settings)
    unequal = freewheel.Simulated(
        slow(lognormal(0.01, 0.5), {1: 8.0}), Network(0.02, 1e5, 1e5, jitter=0.5), ServerCost(0.005)
    )
    train(module, ALL[method], unequal, **settings)
    assert torch.equal(floats(module), floats(reference))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["synchronous", "synchronous-layer"])
@pytest.mark.parametrize("workers", [2, 4])
def test_synchronous_depends_on_the_global_batch_only(engine: str, method: str, workers: int) -> None:
    reference, module = network(norm=False, dropout=0.0), network(norm=False, dropout=0.0)
    train(reference, ALL[method], "serial", batch_size=48)
    train(module, ALL[method], engine, workers=workers, batch_size=48 // workers)
    torch.testing.assert_close(state(module), state(reference), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("workers", [2, 5])
def test_equal_simulated_workers_without_a_network_are_the_serial_engine(method: str, workers: int) -> None:
    """Weights and statistics, dropout included: the very order of the steps.

    Minibatches of 12 give all workers the same number of steps; else the serial engine's last pushes in
    flight would be in the order of the workers, and not of time.
    """
    shards = most_shards(method) if workers == 5 else 1
    settings = {"workers": workers, "batch_size": 12, "evaluate_every": WHOLE_RUN, "shards": shards}
    reference, module = network(), network()
    serial = train(reference, ALL[method], "serial", **settings)
    simulated = train(module, ALL[method], freewheel.Simulated(0.01), **settings)
    assert torch.equal(floats(module), floats(reference))
    assert simulated.ledger == serial.ledger
    if method not in IN_FLIGHT:  # a serial push that is in flight at the end belongs to no step
        assert simulated.staleness == serial.staleness
    assert simulated.metrics == serial.metrics


@pytest.mark.parametrize("shards", [1, 5])
def test_live_reads_are_pulls_that_take_no_memory(shards: int) -> None:
    """Shards of unequal queues are read at unequal times; the weights are of those times."""
    rule = sgd(0.1, momentum=0.5)
    engine = freewheel.Simulated(
        lognormal(0.01, 0.5), server=ServerCost(seconds_per_push=1e-3, seconds_per_byte=3e-5)
    )
    modules = (network(), network())
    methods = (freewheel.hogwild(rule=rule), freewheel.downpour(0.1, 1, 1, server=rule))
    live, copies = (
        train(module, method, engine, workers=6, batch_size=8, shards=shards)
        for module, method in zip(modules, methods, strict=True)
    )
    assert torch.equal(floats(modules[0]), floats(modules[1]))
    assert (live.staleness, live.seconds) == (copies.staleness, copies.seconds)


def logged(method: str, seed: int) -> tuple[Tensor, list[tuple[object, ...]]]:
    module, steps = network(), list[tuple[object, ...]]()

    def record(event: Event) -> None:
        if isinstance(event, Steps):
            columns = (event.worker, event.sequence, event.lease, event.samples, event.loss, event.staleness)
            steps.extend(zip(*columns, strict=True))

    train(module, ALL[method], "serial", workers=3, monitors=[record], seed=seed)
    return state(module), steps


@pytest.mark.parametrize("method", ALL)
def test_the_same_seed_gives_the_same_serial_run(method: str) -> None:
    (first, log), (second, again) = (logged(method, seed=4) for _ in range(2))
    assert torch.equal(first, second)
    assert log == again
    assert len(log) == 30


def test_another_seed_gives_another_serial_run() -> None:
    (first, log), (second, again) = (logged("downpour", seed) for seed in (4, 5))
    assert not torch.equal(first, second)
    assert log != again


def simulated(method: str, seed: int, path: Path) -> tuple[Tensor, bytes]:
    module, live = network(), method in LIVE and not ALL[method].rounds
    engine = freewheel.Simulated(
        slow(lognormal(0.01, 0.5), {2: 4.0}),
        Network() if live else Network(0.002, 1e6, jitter=0.5),
        ServerCost(0.0005),
        [
            freewheel.simulation.lose(0.1),
            freewheel.simulation.corrupt(0.1, 2.0),
            freewheel.simulation.duplicate(0.1),
        ],
    )
    monitors = [recorder(path, steps=True)]
    train(module, ALL[method], engine, workers=4, seed=seed, monitors=monitors)
    return state(module), path.read_bytes()


@pytest.mark.parametrize("method", ALL)
def test_the_same_seed_gives_the_same_simulated_run_and_byte_for_byte_the_same_events(
    method: str, tmp_path: Path
) -> None:
    first, log = simulated(method, 4, tmp_path / "first.jsonl")
    second, again = simulated(method, 4, tmp_path / "second.jsonl")
    assert torch.equal(first, second)
    assert log == again
    assert log.count(b'"Steps"') > 0


def test_another_seed_gives_other_times_and_faults(tmp_path: Path) -> None:
    """Beside another order of the data: the staleness of the pushes is another."""
    lines = [simulated("stale_synchronous", seed, tmp_path / "events.jsonl")[1] for seed in (4, 5)]
    columns = [
        [event.staleness for line in log.decode().splitlines() if isinstance(event := from_json(line), Steps)]
        for log in lines
    ]
    assert columns[0] != columns[1]

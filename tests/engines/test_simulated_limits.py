"""The simulated engine: what it refuses, faults at its edges, and how little it keeps."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from laws import ALL, COPIES, LIVE, SAMPLES, blobs, network, train
from torch import Tensor, nn

import freewheel
from freewheel.errors import ConfigurationError, TrainingError
from freewheel.methods import Method
from freewheel.simulation import (
    Fault,
    Network,
    constant,
    corrupt,
    die,
    hang,
    lognormal,
    pauses,
    per_worker,
    slow,
)


def refused(engine: freewheel.Simulated, method: str = "downpour", **settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        train(network(), ALL[method], engine, workers=3, **settings)
    return str(caught.value)


@pytest.mark.parametrize("method", [name for name in LIVE if not ALL[name].rounds])
def test_live_reads_over_a_network_are_refused(method: str) -> None:
    message = refused(freewheel.Simulated(0.1, Network(0.005)), method)
    assert re.search(
        r"reads the live weights.*`network` is 5 ms.*use stale_synchronous\(\) or downpour\(\)", message
    )


@pytest.mark.parametrize("method", [*COPIES, "synchronous", "synchronous-layer"])
def test_copies_and_rounds_over_a_network_are_not(method: str) -> None:
    result = train(network(), ALL[method], freewheel.Simulated(0.1, Network(0.005)), workers=2, epochs=1)
    assert result.steps == 15
    assert result.seconds > 0.75


def test_data_of_unknown_length_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(torch.zeros(10), torch.tensor(0))] * 5)

    with pytest.raises(ConfigurationError, match="`data` of known length; give tensors, a Dataset"):
        freewheel.fit(
            network(norm=False), Stream(), loss=nn.CrossEntropyLoss(), engine="simulated", workers=1
        )


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("times", freewheel.Simulated(slow(constant(1.0), {3: 2.0}))),
        ("times", freewheel.Simulated(per_worker({3: constant(1.0)}, default=constant(2.0)))),
        ("times", freewheel.Simulated(pauses(constant(1.0), 10.0, 1.0, workers=[3]))),
        ("faults", freewheel.Simulated(1.0, faults=[die(3, 0)])),
        ("faults", freewheel.Simulated(1.0, faults=[hang(3, 0, 1.0)])),
        ("faults", freewheel.Simulated(1.0, faults=[corrupt(0.1, workers=[0, 3])])),
    ],
)
def test_workers_that_a_run_does_not_have_are_refused(name: str, engine: freewheel.Simulated) -> None:
    message = refused(engine)
    assert message == f"`{name}` names worker 3, but there are 3, numbered from 0 to 2"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": "fast"}, "`times` must be a model of computing time"),
        ({"times": -1.0}, "must be a number > 0"),
        ({"network": 0.1}, "`network` must be a freewheel.simulation.Network, got 0.1"),
        ({"server": 0.1}, "`server` must be a freewheel.simulation.ServerCost, got 0.1"),
        ({"faults": ["die"]}, r"`faults` may hold die\(\)"),
        ({"faults": [die(0, 1), hang(0, 1, 1.0)]}, "two for worker 0 in step 1"),
    ],
)
def test_what_is_no_model_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        freewheel.Simulated(**settings)


@pytest.mark.parametrize(
    ("method", "faults"),
    [
        ("hogwild", [die(worker, 1) for worker in range(3)]),
        ("synchronous", [die(worker, 2) for worker in range(3)]),
        ("downpour-warm_start", [die(worker, 0) for worker in range(3)]),
    ],
)
def test_a_run_that_nobody_can_finish_says_so(method: str, faults: list[Fault]) -> None:
    with pytest.raises(TrainingError, match=r"came to a stand at .* of 30 steps.*let some come back"):
        train(network(), ALL[method], freewheel.Simulated(0.1, faults=faults), workers=3)
    assert threading.active_count() == 1


def test_a_stand_is_no_end_where_only_the_clock_is_to_end_the_run() -> None:
    engine = freewheel.Simulated(0.1, faults=[die(0, 1), die(1, 2)])
    with pytest.raises(
        TrainingError, match=r"came to a stand at 0\.2 s after 3 steps: of 2 workers 2 are dead"
    ):
        train(network(), ALL["hogwild"], engine, workers=2, epochs=None, max_seconds=9.0)


@pytest.mark.parametrize("method", ["downpour-in_flight", "stale_synchronous-in_flight"])
def test_who_dies_in_the_first_step_begins_no_other(method: str) -> None:
    result = train(network(), ALL[method], freewheel.Simulated(0.1, faults=[die(0, 0)]), workers=2)
    assert [worker.steps for worker in result.workers] == [0, 30]


@pytest.mark.parametrize("method", ["stale_synchronous", "local_sgd", "synchronous"])
def test_the_living_do_the_work_of_the_dead(method: str) -> None:
    result = train(network(), ALL[method], freewheel.Simulated(0.1, faults=[die(1, 2)]), workers=3)
    assert sum(worker.steps for worker in result.workers) == 30
    assert result.workers[1].steps == 2
    assert result.reason == "epochs"


@pytest.mark.parametrize("method", ["stale_synchronous", "downpour-warm_start", "local_sgd", "synchronous"])
def test_nobody_waits_for_the_dead(method: str) -> None:
    """Neither gates nor rounds: the others go on while one is away."""
    engine = freewheel.Simulated(0.1, faults=[die(1, 2, back_after_s=1000.0)])
    result = train(network(), ALL[method], engine, workers=3, epochs=None, max_seconds=3.05)
    assert result.workers[1].steps == 2
    assert min(result.workers[0].steps, result.workers[2].steps) >= 24


@pytest.mark.parametrize(
    ("method", "pushed"),
    [
        (
            freewheel.downpour(0.05, push_every=4),
            3,
        ),  # the first and the fifth step of the one, the other's first
        (freewheel.diloco(4), 2),  # four steps, and the rest at the end
        (freewheel.parallel_sgd(0.05), 1),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_a_dead_worker_held_back_is_lost_with_it(method: Method, pushed: int) -> None:
    engine = freewheel.Simulated(0.1, faults=[die(1, 3)])
    result = train(network(), method, engine, workers=2, max_samples=128, epochs=None, evaluate_every=SAMPLES)
    assert [worker.steps for worker in result.workers] == [5, 3]
    assert result.ledger["pushed"] == result.ledger["applied"] == pushed


def test_a_gradient_that_is_one_element_for_all_can_be_corrupted() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(4))

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = module.w
        assert isinstance(weight, Tensor)
        return weight.sum()

    engine = freewheel.Simulated(0.1, faults=[corrupt(1.0, 10.0)])
    model = Sum()
    result = freewheel.fit(model, blobs(), step=step, method="hogwild", engine=engine, workers=1)
    assert result.ledger["applied"] == 15
    assert len(set(model.w.tolist())) == 4


def test_a_thousand_workers_that_read_the_live_weights_have_no_weights_of_their_own() -> None:
    engine = freewheel.Simulated(lognormal(0.01, 0.3))
    result = train(
        network(norm=False),
        freewheel.hogwild(1e-4, momentum=0.0),
        engine,
        workers=1000,
        batch_size=1,
        epochs=5,
    )
    assert result.steps == 1200
    assert sum(worker.steps > 0 for worker in result.workers) == 1000
    assert max(result.staleness) > 900

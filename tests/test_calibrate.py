"""Calibration: step times out of recorded steps, and the engine that they make."""

from __future__ import annotations

import importlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import freewheel
from freewheel.calibrate import calibrate, measurement
from freewheel.calibration import Calibration, Measurement
from freewheel.engines.costs import ServerSeconds, server_seconds
from freewheel.errors import ConfigurationError
from freewheel.events import NOT_PUSHED, Steps
from freewheel.rules import sgd
from freewheel.simulation import Network, ServerCost, as_times, measured

X = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
LOSS = nn.CrossEntropyLoss()


def steps(*rows: tuple[int, int, float], staleness: int = 1) -> Steps:
    """Rows of worker, sequence, end."""
    count = len(rows)
    workers, sequences, ends = (list(column) for column in zip(*rows, strict=True))
    return Steps(
        workers, sequences, list(range(count)), [16] * count, [1.0] * count, [staleness] * count, ends
    )


def regular(worker: int, number: int, seconds: float) -> Steps:
    return steps(*((worker, index, seconds * (index + 1)) for index in range(number)))


def two(share: float = 0.2) -> Calibration:
    one = Measurement(1, (0.010, 0.014), 16.0, 0.0)
    both = Measurement(2, (0.020, 0.030), 16.0, 1 - share)
    return Calibration((one, both), ServerSeconds(0.002, 0.001), 1000, 2, "stale_synchronous")


# --- from steps to a measurement ---


def test_a_step_lasts_from_the_end_of_the_one_before_of_the_same_worker() -> None:
    rows = [(worker, index, 1.0 * index + 0.25 * worker) for index in range(12) for worker in (0, 1)]
    found = measurement(2, [[steps(*rows)]], warm_up_s=0.0)
    assert found.step_seconds == (1.0,) * 22
    assert found.samples_per_second == 32.0
    assert found.mean_staleness == 1.0


def test_the_warm_up_and_gaps_are_left_out() -> None:
    rows = [(0, index, 0.5 * index) for index in range(20)]
    late = rows[:12] + rows[14:]
    assert len(measurement(1, [[steps(*rows)]], warm_up_s=2.0).step_seconds) == 15
    assert len(measurement(1, [[steps(*late)]], warm_up_s=2.0).step_seconds) == 12


def test_runs_are_not_joined_and_events_of_one_run_are() -> None:
    halves = [steps(*((0, i, 1.0 + i) for i in part)) for part in (range(6), range(6, 12))]
    assert len(measurement(1, [halves], warm_up_s=0.0).step_seconds) == 11
    assert len(measurement(1, [[halves[0]], [halves[1]]], warm_up_s=0.0).step_seconds) == 10


def test_steps_that_pushed_nothing_have_no_staleness() -> None:
    rows = [(0, index, 1.0 * index) for index in range(12)]
    assert math.isnan(measurement(1, [[steps(*rows, staleness=NOT_PUSHED)]], 0.0).mean_staleness)


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`seconds` were enough for 4 steps of 1 workers"):
        measurement(1, [[regular(0, 5, 1.0)]], warm_up_s=0.0)


# --- from measurements to an engine ---


def test_within_one_machine_a_step_is_computing_and_turnaround_together() -> None:
    engine = two().engine(2)
    assert engine.times == measured([0.020, 0.030])
    assert engine.turnaround == pytest.approx(0.2)
    assert engine.server == ServerCost()


def test_as_many_workers_as_were_measured_take_their_own_steps_in_order() -> None:
    rows = [(worker, index, (1.0 + worker) * index) for index in range(17) for worker in (0, 1)]
    found = measurement(2, [[steps(*rows)]], warm_up_s=0.0)
    assert found.by_worker == ((1.0,) * 16, (2.0,) * 16)
    calibration = Calibration((found,), ServerSeconds(0.002, 0.001), 1000, 2, "hogwild")
    both = as_times(calibration.engine(2).times)
    assert [both.sampler(0, worker)(0.0) for worker in (0, 1)] == [1.0, 2.0]
    assert calibration.engine(3).times == measured([1.5 * one for one in found.step_seconds])


def test_one_worker_has_no_turnaround() -> None:
    assert two().engine(1).times == measured([0.010, 0.014])
    assert two().engine(1).turnaround == 0.0


def test_more_workers_than_cores_take_longer() -> None:
    crowded, paired = two().engine(8), two().engine(2)
    assert crowded.turnaround == paired.turnaround
    assert crowded.times == measured([4 * 0.020, 4 * 0.030])


def test_machines_of_their_own_have_the_times_of_one_worker_less_the_servers() -> None:
    engine = two().engine(64, machines=True)
    assert engine.times == measured([0.010 - 0.003, 0.014 - 0.003])
    assert engine.server == ServerCost(0.002, 0.001)
    assert engine.turnaround == 0.0


def test_a_network_implies_machines() -> None:
    network = Network(latency_s=0.5)
    assert two().engine(4, network=network) == freewheel.Simulated(
        two().engine(4, machines=True).times, network, ServerCost(0.002, 0.001)
    )


def test_a_server_that_costs_more_than_a_step_leaves_some_computing() -> None:
    slow = Calibration(two().measurements, ServerSeconds(1.0, 1.0), 1000, 2, "x")
    assert slow.engine(4, machines=True).times == measured([0.05 * 0.010, 0.05 * 0.014])


def test_the_nearest_number_of_workers_counts() -> None:
    assert [two().at(workers).workers for workers in (1, 2, 3, 100)] == [1, 2, 2, 2]


def test_a_simulated_run_has_the_measured_throughput_and_staleness() -> None:
    method = freewheel.hogwild(1e-3)
    engine = two(share=0.25).engine(2)
    result = freewheel.fit(
        nn.Linear(8, 2), (X, Y), loss=LOSS, method=method, engine=engine, workers=2, epochs=20
    )
    assert result.samples_per_second == pytest.approx(two().at(2).samples_per_second, rel=0.02)
    assert result.mean_staleness == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"workers": 0}, "`workers` must be >= 1"), ({"workers": 2, "network": 5}, "`network` must be a")],
)
def test_an_engine_refuses_nonsense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        two().engine(**arguments)


# --- measuring ---


def test_calibrating_measures_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = calibrate(model, (X, Y), loss=LOSS, workers=(2, 1), seconds=0.2, batch_size=8)
    assert [one.workers for one in found.measurements] == [1, 2]
    assert all(one.samples_per_step == 8 for one in found.measurements)
    assert found.measurements[0].mean_staleness == 0.0
    assert found.weights == sum(p.numel() for p in model.parameters())
    assert min(found.server) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "2 workers: " in str(found)


def test_an_interrupt_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("freewheel.calibrate")
    calls: list[int] = []

    def fit(model: nn.Module, data: Any, **arguments: Any) -> SimpleNamespace:
        calls.append(arguments["workers"])
        return SimpleNamespace(reason="interrupted")

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        calibrate(nn.Linear(8, 2), (X, Y), loss=LOSS)
    assert calls == [1]


def test_timing_a_server_leaves_the_weights_alone() -> None:
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    assert server_seconds(model, sgd(0.1, momentum=0.9)).push > 0
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 2}, "`workers` must be a list of numbers, got 2"),
        ({"workers": (0, 1)}, "`workers` must be one or more numbers >= 1"),
        ({"workers": ()}, "`workers` must be one or more"),
        ({"seconds": 0}, "`seconds` must be a number > 0"),
        ({"method": "synchronous"}, "`method` synchronous lets workers wait"),
        ({"method": freewheel.stale_synchronous(3)}, "`method` stale_synchronous lets workers wait"),
    ],
)
def test_calibrating_refuses_nonsense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        calibrate(nn.Linear(8, 2), (X, Y), loss=LOSS, **arguments)

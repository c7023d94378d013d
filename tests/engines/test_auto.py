"""``engine="auto"``: what is chosen, why, and that choosing leaves no trace in the run."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import freewheel
from freewheel.engines import Auto, Processes, Threads, auto
from freewheel.engines.auto import Rates, by_rates, chosen
from freewheel.engines.plan import planned_samples
from freewheel.events import Event, RunStarted
from freewheel.inputs import source_of
from freewheel.job import Job, Setup, Stop
from freewheel.methods import Method
from freewheel.tasks import Supervised


class Endless(IterableDataset[Any]):
    """Data whose length nobody knows."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


X = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def job(workers: int = 2, method: Method | None = None, **stop: Any) -> Job:
    source = source_of((X, Y), 16, 0)
    chosen = method or freewheel.hogwild(0.1)
    task: Any = Supervised(loss=nn.CrossEntropyLoss())
    return Job(
        nn.Linear(8, 2), task, chosen, source, Stop(**(stop or {"epochs": 1000})), Setup(workers=workers)
    )


def rates(efficiency: float, step_s: float = 0.01) -> Rates:
    return Rates(step_s, 2, efficiency)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "cores", lambda: 2)


# --- from rates to a choice ---


def test_steps_that_hold_the_lock_go_to_processes() -> None:
    engine, reason = by_rates(job(), rates(0.5))
    assert isinstance(engine, Processes)
    assert (
        reason == "2 threads get 1.0 times one's work done at 10 ms a step, so 50 % of 320 s would be wasted"
    )


def test_steps_that_leave_the_lock_stay_on_threads() -> None:
    engine, reason = by_rates(job(), rates(0.95))
    assert isinstance(engine, Threads)
    assert "1.9 times" in reason


def test_a_short_run_is_over_before_processes_have_started() -> None:
    engine, reason = by_rates(job(epochs=2), rates(0.5))
    assert isinstance(engine, Threads)
    assert reason.endswith("the run is too short for processes to start")


def test_a_stream_of_unknown_length_is_judged_by_a_step() -> None:
    endless = job()
    endless = replace(endless, source=source_of(Endless(), 16, 0), stop=Stop(epochs=1))
    assert planned_samples(endless) is None
    assert isinstance(by_rates(endless, rates(0.5))[0], Processes)
    assert isinstance(by_rates(endless, rates(0.95))[0], Threads)


def test_processes_start_sooner_when_the_program_has_had_some(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    for prepared in (False, True):
        monkeypatch.setattr(auto, "_prepared", lambda prepared=prepared: prepared)
        kinds.append(type(chosen(job(epochs=10), lambda job: rates(0.5)).engine))
    assert kinds == [Threads, Processes]


def test_a_program_that_has_trained_on_processes_is_prepared() -> None:
    done = "import freewheel, torch\nfrom freewheel.engines.auto import _prepared\nbefore = _prepared()\n"
    done += "freewheel.fit(torch.nn.Linear(2, 2), (torch.ones(4, 2), torch.zeros(4).long()), workers=1,"
    done += " loss=torch.nn.CrossEntropyLoss(), engine='processes')\nprint(before, _prepared())"
    run = subprocess.run([sys.executable, "-c", done], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True"]


@pytest.mark.parametrize(("seconds", "kind"), [(2.0, Threads), (60.0, Processes)])
def test_a_limit_of_time_counts_as_the_length_of_the_run(seconds: float, kind: type) -> None:
    assert isinstance(by_rates(job(max_seconds=seconds), rates(0.5))[0], kind)


def test_steps_whose_updates_are_served_need_to_be_longer() -> None:
    short, long = rates(0.6, step_s=0.0002), rates(0.6, step_s=0.01)
    synchronous = job(method=freewheel.synchronous(0.1), epochs=100_000)
    assert isinstance(by_rates(synchronous, short)[0], Threads)
    assert isinstance(by_rates(synchronous, long)[0], Processes)
    assert isinstance(by_rates(job(epochs=100_000), short)[0], Processes)


# --- what needs no measurement ---


def never(job: Job) -> Rates:
    raise AssertionError("measured")


def test_one_worker_needs_no_measurement() -> None:
    assert isinstance(chosen(job(workers=1), never).engine, Threads)


def test_what_cannot_be_sent_runs_on_threads() -> None:
    lock = threading.Lock()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        with lock:
            return nn.functional.cross_entropy(prediction, target)

    local = replace(job(), task=Supervised(loss=loss))
    engine, reason = chosen(local, never)
    assert isinstance(engine, Threads)
    assert reason.startswith("processes cannot run this: `loss`, `step` or `metrics` cannot be sent")


def test_a_recorded_run_is_on_threads(tmp_path: Path) -> None:
    result = freewheel.fit(
        nn.Linear(8, 2),
        (X, Y),
        loss=nn.CrossEntropyLoss(),
        method=freewheel.stale_synchronous(2, 0.1),
        engine="auto",
        workers=2,
        record=True,
        run_dir=tmp_path / "run",
    )
    assert result.config["engine"] == "threads"


# --- measuring ---


class Slow(nn.Module):
    """Half of its forward pass is Python, which threads cannot do at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        sum(range(40_000))
        prediction: Tensor = self.linear(inputs)
        return prediction


def test_python_in_a_step_shows_in_the_rates() -> None:
    found = auto.measured(replace(job(), module=Slow()))
    assert found.efficiency < 0.75
    assert found.threads == 2


def test_a_step_that_fails_is_left_to_the_run() -> None:
    def failing(module: nn.Module, batch: Any) -> Tensor:
        raise ValueError("no")

    assert auto.measured(replace(job(), task=Supervised(step_function=failing))).efficiency == 1.0


def test_measuring_changes_nothing() -> None:
    given = replace(
        job(), module=nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    )
    given.source.open(0, 10)
    weights = [tensor.clone() for tensor in given.module.state_dict().values()]
    draws = (torch.get_rng_state(), random.getstate())
    np.random.seed(7)
    auto.measured(given)
    assert all(map(torch.equal, weights, given.module.state_dict().values()))
    assert torch.equal(draws[0], torch.get_rng_state())
    assert draws[1] == random.getstate()
    measured, _ = np.random.random(), np.random.seed(7)
    assert measured == np.random.random()
    lease = given.source.take()
    assert lease is not None
    assert lease.number == 0


def fit(engine: Any, **more: Any) -> freewheel.Result:
    torch.manual_seed(0)
    return freewheel.fit(nn.Linear(8, 2), (X, Y), loss=nn.CrossEntropyLoss(), engine=engine, epochs=2, **more)


def test_the_run_is_that_of_the_chosen_engine_bit_for_bit() -> None:
    automatic, given = fit("auto", workers=1), fit("threads", workers=1)
    assert torch.equal(automatic.module.weight, given.module.weight)  # type: ignore[arg-type]


def test_choice_and_reason_are_part_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measured", lambda job: rates(0.95))
    events: list[Event] = []
    result = fit("auto", workers=2, monitors=[events.append])
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.engine == "threads"
    assert "1.9 times" in result.config["engine_reason"]


def test_processes_are_really_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measured", lambda job: rates(0.5, step_s=10.0))
    assert fit(Auto(), workers=2).config["engine"] == "processes"


def test_a_run_goes_on_on_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit("threads", workers=2, run_dir=tmp_path / "run")
    monkeypatch.setattr(auto, "measured", never)
    result = freewheel.fit(
        nn.Linear(8, 2),
        (X, Y),
        loss=nn.CrossEntropyLoss(),
        engine="auto",
        workers=2,
        epochs=3,
        resume=tmp_path / "run",
    )
    assert result.config["engine_reason"] == "the run that goes on began on it"
    assert result.samples == 3 * len(X)

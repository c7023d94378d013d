"""Faults on purpose: what can be asked for, that it happens once, and that one learns of it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel import injection, testing
from freewheel.errors import ConfigurationError, WorkerError
from freewheel.events import Event, Steps, WorkerRestarted
from freewheel.testing import InjectedFaultError, inject

X = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]])


pause = time.sleep  # whatever tests put in its place


def unhurried(prediction: Tensor, target: Tensor) -> Tensor:
    """So that no worker has used all the data before another has begun."""
    pause(0.001)
    return nn.functional.mse_loss(prediction, target)


def fit(**more: Any) -> freewheel.Result:
    torch.manual_seed(0)
    arguments = {"engine": "threads", "method": freewheel.hogwild(0.1, 0.0), "workers": 2, **more}
    return freewheel.fit(nn.Linear(4, 1), (X, Y), loss=unhurried, batch_size=4, **arguments)


def test_an_exception_has_the_name_of_its_fault() -> None:
    with inject(testing.fail(worker=1, step=3)) as injected, pytest.raises(WorkerError) as caught:
        fit(on_error="stop")
    assert (caught.value.worker, caught.value.sequence) == (1, 3)
    assert isinstance(caught.value.__cause__, InjectedFaultError)
    assert injected.fired == ["fail(worker=1, step=3)"]
    assert injected.all_fired


def test_a_fault_that_is_never_reached_has_not_fired() -> None:
    with inject(testing.fail(worker=0, step=10**6)) as injected:
        fit()
    assert injected.fired == []
    assert not injected.all_fired


def test_a_fault_happens_once_in_all_runs() -> None:
    with inject(testing.duplicate(worker=0, step=0)) as injected:
        assert [fit().ledger["duplicates"] for _ in range(2)] == [1, 0]
    assert injected.all_fired


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_a_run_with_faults_goes_on_without_them(engine: str, tmp_path: Path) -> None:
    with inject(testing.duplicate(worker=0, step=3)) as injected:
        fit(engine=engine, run_dir=tmp_path)
    assert injected.all_fired
    result = fit(engine=engine, run_dir=tmp_path, resume=tmp_path, epochs=2)
    assert (result.samples, result.ledger["duplicates"]) == (2 * len(X), 1)


def test_afterwards_nothing_is_injected() -> None:
    with inject(testing.fail(worker=0, step=0)):
        assert len(injection.wraps) == 1
    assert injection.wraps == []
    assert fit().samples == len(X)


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
@pytest.mark.parametrize(
    "method", [freewheel.hogwild(0.1, 0.0), freewheel.stale_synchronous(3, 0.1, momentum=0.0)]
)
@pytest.mark.parametrize("kind", [testing.duplicate, testing.stale])
def test_what_comes_twice_is_counted_and_dropped(kind: Any, method: freewheel.Method, engine: str) -> None:
    with inject(kind(worker=1, step=2)) as injected:
        result = fit(engine=engine, method=method)
    assert injected.all_fired
    assert result.ledger["duplicates"] == 1
    assert result.ledger["applied"] == result.steps == 32


def test_a_gradient_that_is_not_finite_spoils_weights_that_nobody_guards() -> None:
    with inject(testing.nan(worker=0, step=31)):
        module = fit(workers=1).module
    assert any(bool(torch.isnan(weight).any()) for weight in module.parameters())


@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_the_rule_finite_guards_them(engine: str) -> None:
    rule = freewheel.rules.chain(freewheel.rules.finite(), freewheel.rules.sgd(0.1))
    with inject(testing.nan(worker=0, step=3)) as injected:
        result = fit(engine=engine, method=freewheel.hogwild(rule=rule), epochs=10)
    assert injected.all_fired
    assert sum(result.ledger["dropped"].values()) == 1
    assert all(bool(torch.isfinite(weight).all()) for weight in result.module.parameters())


def test_garbage_is_finite_and_far_too_large() -> None:
    with inject(testing.garbage(worker=0, step=31)):
        module = fit(workers=1).module
    largest = max(float(weight.detach().abs().max()) for weight in module.parameters())
    assert 1e4 < largest < math.inf


def test_a_wrong_shape_is_refused_by_the_server() -> None:
    with inject(testing.wrong_shape(worker=0, step=3)), pytest.raises(ConfigurationError, match="shape"):
        fit()


def test_hanging_takes_time() -> None:
    with inject(testing.hang(worker=0, step=3, seconds=0.3)):
        assert fit(workers=1).seconds > 0.3


@pytest.mark.parametrize(("steps", "times"), [(4, 4), (0, 29)])
def test_a_slow_worker_stays_slow_for_as_many_steps_as_are_wanted_and_counts_once(
    steps: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(testing.faults.time, "sleep", slept.append)  # type: ignore[attr-defined]
    with inject(testing.slow(worker=0, step=3, seconds=0.05, steps=steps)) as injected:
        fit(workers=1, engine="serial")
    assert injected.fired == ["slow(worker=0, step=3)"]
    assert slept == [0.05] * times


def test_faults_survive_the_death_of_a_process_and_are_told_of_in_order() -> None:
    faults = [testing.kill(1, 2), testing.segfault(1, 4, during="push"), testing.leave(1, 6, code=7)]
    with inject(*faults) as injected:
        result = fit(engine="processes", epochs=4)
    assert injected.fired == [str(fault) for fault in faults]
    assert result.restarts == 3


def test_a_storm_is_drawn_from_its_seed() -> None:
    drawn = [testing.storm(1.0, ("kill", "fail"), seed).draw(n, 4) for seed in (0, 0, 1) for n in range(20)]
    assert drawn[:20] == drawn[20:40] != drawn[40:]
    assert {fault.kind for fault in drawn} == {"kill", "fail"}
    assert {fault.worker for fault in drawn} == {0, 1, 2, 3}


def test_a_storm_does_not_stop_progress() -> None:
    with inject(testing.storm(every_s=0.4, kinds=("kill", "fail", "segfault"), seed=1)) as injected:
        result = fit(engine="processes", epochs=None, max_seconds=3.0, max_restarts=100)
    assert len(injected.fired) >= 3
    assert result.restarts >= 3
    assert result.reason == "max_seconds"
    assert torch.allclose(result.module.weight.detach(), torch.tensor([[1.0, 2.0, -1.0, 0.5]]), atol=0.05)  # type: ignore[operator]


@pytest.mark.parametrize(
    "method",
    [
        freewheel.hogwild(0.1, 0.0),
        freewheel.synchronous(0.1, 0.0),
        freewheel.stale_synchronous(2, 0.1, momentum=0.0),
    ],
    ids=lambda method: method.name,
)
def test_whomever_a_storm_kills_comes_back_and_goes_on(method: freewheel.Method) -> None:
    events: list[Event] = []
    storm = testing.storm(every_s=0.4, kinds=("kill",), seed=269)  # strikes both workers, in turn mostly
    arguments: dict[str, Any] = {"epochs": None, "max_seconds": 3.0, "max_restarts": 100}
    with inject(storm) as injected:
        result = fit(engine="processes", method=method, monitors=[events.append], **arguments)
    assert result.reason == "max_seconds"
    assert {text.split(",")[0] for text in injected.fired} == {"kill(worker=0", "kill(worker=1"}
    assert 2 <= result.restarts <= len(injected.fired)
    for worker in range(2):
        again = next(
            place
            for place, event in enumerate(events)
            if isinstance(event, WorkerRestarted) and event.worker == worker
        )
        later = [event for event in events[again:] if isinstance(event, Steps)]
        assert sum(event.worker.count(worker) for event in later) > 0
    assert torch.allclose(result.module.weight.detach(), torch.tensor([[1.0, 2.0, -1.0, 0.5]]), atol=0.05)  # type: ignore[operator]


def test_nothing_is_left_of_the_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with inject(testing.duplicate(0, 0)):
        fit()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: testing.kill(-1, 0), "`worker` must be a whole number >= 0, got -1"),
        (lambda: testing.kill(0, -2), "`step` must be a whole number >= 0, got -2"),
        (lambda: testing.kill(0, 0, during="lunch"), "`during` must be one of step, push"),  # type: ignore[arg-type]
        (lambda: testing.hang(0, 0, seconds=-1.0), "`seconds` must be >= 0, got -1.0"),
        (lambda: testing.storm(0.0), "`every_s` must be seconds > 0, got 0.0"),
        (lambda: testing.storm(1.0, ("rain",)), "`kinds` must be some of kill, segfault"),
        (lambda: inject("kill"), "`faults` must be made by the functions of freewheel.testing"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize(
    ("fault", "engine", "message"),
    [
        (testing.kill(0, 1), "threads", "ends the process of a worker, but `engine` is 'threads'"),
        (testing.storm(1.0), "serial", "ends the process of a worker, but `engine` is 'serial'"),
        (testing.fail(0, 1, during="checkpoint"), "threads", "thread reads it; use engine='processes'"),
        (testing.fail(2, 1), "threads", "names a worker that the run does not have: it has 2"),
        (testing.fail(0, 1), "simulated", r"give freewheel.Simulated\(faults="),
    ],
)
def test_what_a_run_cannot_have_is_refused_when_it_begins(fault: Any, engine: str, message: str) -> None:
    with inject(fault), pytest.raises(ConfigurationError, match=message):
        fit(engine=engine)

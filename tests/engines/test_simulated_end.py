"""A simulated run is over when its last step is booked, whatever else would have happened later."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import freewheel
from freewheel.engines.virtual import Simulation
from freewheel.job import Result
from freewheel.simulation import Network, ServerCost, constant, die, slow


def run(engine: freewheel.Simulated, **limits: Any) -> Result:
    data = torch.ones(64, 2), torch.zeros(64, dtype=torch.long)
    return freewheel.fit(
        nn.Linear(2, 2),
        data,
        loss=nn.CrossEntropyLoss(),
        method=freewheel.stale_synchronous(9, 0.1),
        engine=engine,
        workers=2,
        batch_size=8,
        epochs=1,
        **limits,
    )


def test_time_that_was_allowed_and_not_used_does_not_count() -> None:
    limited, free = run(freewheel.Simulated(0.01), max_seconds=100.0), run(freewheel.Simulated(0.01))
    assert limited.reason == free.reason == "epochs"
    assert limited.seconds == free.seconds == pytest.approx(0.04)
    assert limited.history == free.history


@pytest.mark.parametrize("limit", [None, 2.0])
def test_a_worker_that_would_return_later_does_not_prolong_the_run(limit: float | None) -> None:
    result = run(freewheel.Simulated(0.01, faults=[die(1, 2, back_after_s=5.0)]), max_seconds=limit)
    assert result.reason == "epochs"
    assert result.samples == 64
    assert result.seconds == pytest.approx(0.06)


def test_a_limit_that_comes_first_ends_the_run_at_that_time() -> None:
    result = run(freewheel.Simulated(slow(constant(0.01), {0: 9.0})), max_seconds=0.05)
    assert result.reason == "max_seconds"
    assert result.seconds == 0.05


@pytest.mark.parametrize("back_after_s", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize(("bound", "turnaround"), [(0, 0.0), (10, 0.0), (10, 0.3)])
def test_who_comes_back_has_no_steps_of_its_earlier_life_under_way(
    back_after_s: float, in_flight: int, bound: int, turnaround: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = [0] * 3, [0] * 3
    begin, finish = Simulation._compute, Simulation._finish

    def began(self: Simulation, member: Any, *rest: Any) -> None:
        under_way[member.number] += 1
        most[member.number] = max(most[member.number], under_way[member.number])
        begin(self, member, *rest)

    def finished(self: Simulation, step: Any, updates: Any) -> None:
        under_way[step.member.number] -= 1
        finish(self, step, updates)

    monkeypatch.setattr(Simulation, "_compute", began)
    monkeypatch.setattr(Simulation, "_finish", finished)
    faults = [die(1, 5, back_after_s=back_after_s)]
    times = slow(constant(1.0), {0: 3.0})
    result = freewheel.fit(
        nn.Linear(2, 2),
        (torch.ones(200, 2), torch.zeros(200, dtype=torch.long)),
        loss=nn.CrossEntropyLoss(),
        method=freewheel.stale_synchronous(bound, 0.1, in_flight=in_flight),
        engine=freewheel.Simulated(times, Network(latency_s=0.3), ServerCost(), faults, turnaround),
        workers=3,
        batch_size=4,
    )
    assert max(most) == 1 + in_flight
    assert result.samples == 200

"""The turnaround of a simulated worker: time between its push and its next pull."""

from __future__ import annotations

import pytest
import torch

import freewheel
from freewheel.errors import ConfigurationError
from freewheel.simulation import constant, per_worker

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def run(turnaround: float, method: freewheel.Method, workers: int = 2) -> freewheel.Result:
    torch.manual_seed(0)
    engine = freewheel.Simulated(0.003, turnaround_s=turnaround)
    return freewheel.fit(
        torch.nn.Linear(4, 2),
        (X, Y),
        loss=torch.nn.CrossEntropyLoss(),
        method=method,
        engine=engine,
        workers=workers,
        batch_size=4,
        epochs=25,
    )


def test_a_step_takes_computing_and_turnaround() -> None:
    result = run(0.001, freewheel.hogwild(0.01), workers=1)
    assert result.seconds == pytest.approx(400 * 0.004)


def test_updates_during_a_turnaround_make_nobody_stale() -> None:
    times = per_worker({0: constant(0.0031)}, constant(0.003))
    torch.manual_seed(0)
    result = freewheel.fit(
        torch.nn.Linear(4, 2),
        (X, Y),
        loss=torch.nn.CrossEntropyLoss(),
        method=freewheel.stale_synchronous(100, 0.01),
        engine=freewheel.Simulated(times, turnaround_s=0.001),
        workers=2,
        batch_size=4,
        epochs=100,
    )
    # A quarter of the pushes of the one come while the other turns around, at phases that drift.
    assert result.mean_staleness == pytest.approx(0.75, abs=0.02)


def test_without_turnaround_nothing_changes() -> None:
    plain = run(0.0, freewheel.hogwild(0.01))
    assert plain.seconds == pytest.approx(200 * 0.003)
    assert "turnaround_s" not in plain.config


def test_a_turnaround_below_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`turnaround_s` must be a number >= 0"):
        freewheel.Simulated(0.01, turnaround_s=-1.0)

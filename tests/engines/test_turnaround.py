"""The turnaround of a simulated worker: the share of a step between its push and its next pull."""

from __future__ import annotations

import pytest
import torch

import freewheel
from freewheel.errors import ConfigurationError
from freewheel.simulation import StepTimes, constant, lognormal, per_worker

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()


def run(
    turnaround: float,
    method: freewheel.Method,
    times: StepTimes | float = 0.003,
    workers: int = 2,
    epochs: int = 25,
) -> freewheel.Result:
    torch.manual_seed(0)
    return freewheel.fit(
        torch.nn.Linear(4, 2),
        (X, Y),
        loss=torch.nn.CrossEntropyLoss(),
        method=method,
        engine=freewheel.Simulated(times, turnaround=turnaround),
        workers=workers,
        batch_size=4,
        epochs=epochs,
    )


def test_a_step_takes_no_longer_with_a_turnaround() -> None:
    result = run(0.4, freewheel.hogwild(0.01), workers=1)
    assert result.seconds == pytest.approx(400 * 0.003)


def test_the_times_of_steps_are_those_of_the_model() -> None:
    """What is drawn for the split takes no number from the draws of the times."""
    times = lognormal(0.01, 0.3)
    plain, split = (run(share, freewheel.hogwild(0.01), times, workers=1) for share in (0.0, 0.4))
    assert split.seconds == pytest.approx(plain.seconds)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8, 1.0])
@pytest.mark.parametrize(
    "times",
    [
        per_worker({0: constant(0.003 + 1e-9)}, constant(0.003)),  # but not to the last bit
        per_worker({0: constant(0.00301)}, constant(0.003)),
        lognormal(0.003, 0.3),
    ],
    ids=["in step", "drifting", "at random"],
)
def test_updates_during_a_turnaround_make_nobody_stale_in_whatever_phase(
    share: float, times: StepTimes
) -> None:
    result = run(share, freewheel.hogwild(0.01), times, epochs=200)
    assert result.mean_staleness == pytest.approx(1 - share, abs=0.03)


@pytest.mark.parametrize("method", [freewheel.hogwild(0.01), freewheel.stale_synchronous(100, 0.01)])
def test_of_four_workers_each_sees_that_share_of_the_others(method: freewheel.Method) -> None:
    result = run(0.3, method, lognormal(0.003, 0.3), workers=4, epochs=200)
    assert result.mean_staleness == pytest.approx(3 * 0.7, abs=0.06)


def test_workers_with_copies_of_the_weights_have_a_fixed_share() -> None:
    """In step, the first to push sees nothing of the other, and the other sees that."""
    times = per_worker({0: constant(0.003 + 1e-9)}, constant(0.003))
    result = run(0.1, freewheel.stale_synchronous(100, 0.01), times, epochs=200)
    assert result.mean_staleness == pytest.approx(0.5, abs=0.02)


def test_without_turnaround_nothing_changes() -> None:
    plain = run(0.0, freewheel.hogwild(0.01))
    assert plain.seconds == pytest.approx(200 * 0.003)
    assert "turnaround" not in plain.config


def test_workers_share_no_split() -> None:
    """Else two in step would do the same at the same times, and each see all of the other or nothing."""
    result = run(0.5, freewheel.hogwild(0.01), epochs=200)
    assert 0.4 < result.mean_staleness < 0.6


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "half"])
def test_a_turnaround_that_is_no_share_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigurationError, match="`turnaround` must be a share from 0 to 1"):
        freewheel.Simulated(0.01, turnaround=wrong)

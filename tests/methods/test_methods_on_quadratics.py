"""The methods on a quadratic, against what is known in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import problems
import pytest
import quadratics
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import freewheel
from freewheel.methods import Method
from freewheel.rules import adagrad, sgd

LR = 0.1


def path(method: Method, workers: int, steps: int) -> tuple[list[float], float]:
    """Distances at which the steps computed, and the one that is left, of 1 on f(w) = w^2 / 2."""
    module, seen = problems.Point(), list[float]()

    def step(point: nn.Module, batch: Tensor) -> Tensor:
        seen.append(float(point()[0].detach()))
        loss: Tensor = 0.5 * (point() ** 2).sum()
        return loss

    zeros: Any = [torch.zeros(1)] * steps
    loader: DataLoader[Any] = DataLoader(zeros, batch_size=None)
    freewheel.fit(module, loader, step=step, method=method, engine="serial", workers=workers)
    values = problems.flat(module)
    assert torch.equal(values, values[:1].expand_as(values))
    return seen[-steps:], float(values[0])


def left(method: Method, workers: int, steps: int) -> float:
    """The distance that is left at the end."""
    return path(method, workers, steps)[1]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_asynchronous_sgd_on_a_quadratic_is_the_delayed_exponential(workers: int) -> None:
    for method in (freewheel.hogwild(LR, momentum=0.0), freewheel.stale_synchronous(3, LR, momentum=0.0)):
        expected = quadratics.delayed(LR, workers - 1, 30)
        assert left(method, workers, 30) == pytest.approx(expected, rel=1e-5)


def test_asynchronous_sgd_diverges_beyond_the_stability_limit_only() -> None:
    workers, steps = 4, 400
    limit = quadratics.stability_limit(workers - 1)
    stable, unstable = (freewheel.hogwild(share * limit, momentum=0.0) for share in (0.9, 1.1))
    assert abs(left(stable, workers, steps)) < 0.1
    assert abs(left(unstable, workers, steps)) > 10


@pytest.mark.parametrize("steps", [1, 4])
def test_local_steps_on_a_quadratic_are_one_larger_step(steps: int) -> None:
    expected = quadratics.local_factor(LR, 12)
    assert left(freewheel.local_sgd(LR, steps), 3, 36) == pytest.approx(expected, rel=1e-5)
    assert left(freewheel.parallel_sgd(LR), 3, 36) == pytest.approx(expected, rel=1e-5)


def test_downpour_of_one_worker_loses_what_it_fetches_over() -> None:
    """Step 1 is not pushed yet when step 2 fetches: in algorithm 7.1 both intervals begin at step 0."""
    method = freewheel.downpour(0.5, 2, 2, server=sgd(0.5))
    # step 0 at 1, pushed: .5. Step 1 at .5 is kept. Step 2 fetches .5; 0.5 + 0.5 is pushed: 0.
    assert left(method, 1, 3) == pytest.approx(0.0, abs=1e-7)
    assert left(freewheel.hogwild(0.5, momentum=0.0), 1, 3) == pytest.approx(0.125)


def test_adagrad_is_the_server_of_downpour() -> None:
    default, named = (
        left(freewheel.downpour(LR, 2, 3, server=server), 3, 20) for server in (None, adagrad(LR))
    )
    assert default == named


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_elastic_averaging_on_a_quadratic_is_its_matrix(momentum: float) -> None:
    workers, steps, period = 3, 12, 4
    vector = np.array([1.0] * (1 + workers) + [0.0] * workers)
    for step in range(steps):
        vector = quadratics.elastic_matrix(LR, 0.2, workers, step % period == 0, momentum) @ vector
    method = freewheel.elastic_averaging(LR, 0.2, period, momentum=momentum)
    assert left(method, workers, workers * steps) == pytest.approx(vector[0], rel=1e-5)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_diloco_on_a_quadratic_is_its_matrix(asynchronous: bool) -> None:
    """One worker, whose delayed Nesterov of one push is Nesterov."""
    method = freewheel.diloco(3, sgd(LR), asynchronous=asynchronous)
    matrix = quadratics.nesterov_matrix(LR, 0.7, 0.9, 3)
    vector = np.linalg.matrix_power(matrix, 8) @ [1.0, 0.0]
    assert left(method, 1, 24) == pytest.approx(vector[0], rel=1e-5)


def test_penalty_of_staleness_has_the_slope_of_theory() -> None:
    """At the best rate for each number of workers, steps to a tolerance grow linearly with the staleness."""
    tolerance, delays = 1e-4, np.arange(4, 33, 4)
    counts = []
    for delay in delays.tolist():
        method = freewheel.hogwild(quadratics.best_step(delay), momentum=0.0)
        distances, _ = path(method, delay + 1, 14 * (delay + 1))
        above = np.flatnonzero(np.abs(distances) >= tolerance)[-1]
        counts.append(above + 1 - delay)  # step k computes at version k - delay
    slope, intercept = np.polyfit(delays, counts, 1)
    assert slope == pytest.approx(quadratics.penalty_slope(tolerance), rel=0.03)
    np.testing.assert_allclose(counts, slope * delays + intercept, rtol=0.03)

"""The closed forms against iteration, and the penalty of staleness against theory."""

from __future__ import annotations

import numpy as np
import pytest
import quadratics

TOLERANCE = 1e-6


def iterate(step: float, delay: int, steps: int, momentum: float = 0.0) -> list[float]:
    path, velocity = [1.0], 0.0
    for t in range(steps):
        velocity = momentum * velocity + step * path[max(0, t - delay)]
        path.append(path[-1] - velocity)
    return path


@pytest.mark.parametrize("delay", [0, 1, 2, 5, 9])
def test_delayed_exponential_equals_iteration(delay: int) -> None:
    path = iterate(0.15, delay, 60)
    closed = [quadratics.delayed(0.15, delay, steps) for steps in range(61)]
    np.testing.assert_allclose(closed, path, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("delay", [0, 1, 4])
def test_largest_root_is_the_rate_of_convergence(delay: int, momentum: float) -> None:
    step = 0.3 * (1 - momentum) ** 2 * quadratics.best_step(delay)
    path = iterate(step, delay, 600, momentum)
    rate = (path[600] / path[500]) ** (1 / 100)
    assert rate == pytest.approx(quadratics.convergence_factor(step, delay, momentum), rel=1e-6)


@pytest.mark.parametrize("delay", [0, 1, 2, 5, 20])
def test_stability_limit_divides_converging_from_diverging(delay: int) -> None:
    limit = quadratics.stability_limit(delay)
    assert quadratics.convergence_factor(0.999 * limit, delay) < 1
    assert quadratics.convergence_factor(1.001 * limit, delay) > 1
    assert quadratics.convergence_factor(limit, delay) == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("delay", [1, 2, 5, 12])
def test_best_step_is_the_fastest_and_its_root_is_double(delay: int) -> None:
    best = quadratics.best_step(delay)
    grid = np.linspace(0.3, 1.7, 281) * best
    factors = [quadratics.convergence_factor(step, delay) for step in grid]
    assert grid[int(np.argmin(factors))] == pytest.approx(best, rel=0.006)
    assert quadratics.convergence_factor(best, delay) == pytest.approx(
        quadratics.best_factor(delay), rel=1e-5
    )


def test_without_delay_one_step_is_enough() -> None:
    assert quadratics.best_step(0) == 1
    assert quadratics.steps_to(TOLERANCE, 1.0, 0) == 1


def test_steps_to_counts_the_last_time_above_the_tolerance() -> None:
    for delay, step in ((0, 0.5), (3, 0.1), (3, 0.4)):
        path = np.abs(iterate(step, delay, 2000))
        above = int(np.flatnonzero(path >= TOLERANCE)[-1])
        assert quadratics.steps_to(TOLERANCE, step, delay) == above + 1
    with pytest.raises(ValueError, match="does not converge"):
        quadratics.steps_to(TOLERANCE, 2.1, 0)


def test_penalty_of_staleness_is_linear_with_the_slope_of_theory() -> None:
    delays = np.arange(4, 64, 4)
    steps = [quadratics.steps_to(TOLERANCE, quadratics.best_step(int(delay)), int(delay)) for delay in delays]
    slope, intercept = np.polyfit(delays, steps, 1)
    assert slope == pytest.approx(quadratics.penalty_slope(TOLERANCE), rel=0.02)
    np.testing.assert_allclose(steps, slope * delays + intercept, rtol=0.02)


@pytest.mark.parametrize("exchange", [True, False])
def test_elastic_iteration_keeps_a_fixed_point_only_at_the_minimum(exchange: bool) -> None:
    matrix = quadratics.elastic_matrix(0.2, 0.1, 3, exchange)
    radius = np.abs(np.linalg.eigvals(matrix)).max()
    assert (radius < 1) == exchange  # without exchange the centre stays where it is
    assert radius == pytest.approx(1.0) or exchange


def test_local_steps_are_one_larger_step() -> None:
    assert quadratics.local_factor(0.1, 1) == pytest.approx(0.9)
    targets = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # the second worker is drawn to 1 by its first step only: 0.1 * 0.9^2, and half of it is in the mean
    assert quadratics.local_mean(1.0, targets, 0.1) == pytest.approx(0.9**3 + 0.1 * 0.81 / 2)

"""The transcriptions themselves: special cases that are known another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optimizers
import pytest
import quadratics
import torch
import transcriptions as papers
from optimizers import Optimizer
from problems import ONE, UNIT, gradient, minima, noiseless, with_torch
from torch import Tensor
from turns import Turn, turns


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (optimizers.sgd(0.1), torch.optim.SGD, {"lr": 0.1}),
        (optimizers.sgd(0.1, 0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (optimizers.sgd(0.1, 0.9, True), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (optimizers.adagrad(0.1), torch.optim.Adagrad, {"lr": 0.1}),
        (optimizers.adamw(0.1, decay=0.05), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.05}),
    ],
)
def test_one_asynchronous_worker_is_the_optimizer(
    ours: Optimizer, theirs: Callable[..., Any], settings: dict[str, Any]
) -> None:
    result = papers.asynchronous_sgd(UNIT, gradient, turns(minima(20), 1), ours)
    torch.testing.assert_close(result, with_torch(minima(20), theirs, **settings))


def test_turns_of_free_workers() -> None:
    assert list(turns("abcd", 2)) == [
        Turn("start", 0, "a"),
        Turn("start", 1, "b"),
        Turn("deliver", 0, "a"),
        Turn("start", 0, "c"),
        Turn("deliver", 1, "b"),
        Turn("start", 1, "d"),
        Turn("deliver", 0, "c"),
        Turn("deliver", 1, "d"),
        Turn("end", 0),
        Turn("end", 1),
    ]


def test_equal_workers_never_meet_a_bound_of_one_but_a_bound_of_zero_is_a_barrier() -> None:
    batches = minima(12)
    assert [turn[:2] for turn in turns(batches, 3, 1)] == [turn[:2] for turn in turns(batches, 3)]
    result = papers.asynchronous_sgd(UNIT, gradient, turns(batches, 3, 0), optimizers.sgd(0.1))
    rounds = [batches[first : first + 3] for first in range(0, 12, 3)]
    summed = papers.backup_workers(UNIT, gradient, rounds, 3, optimizers.sgd(0.3))
    torch.testing.assert_close(result, summed)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_asynchronous_workers_on_a_quadratic_are_the_delayed_exponential(workers: int) -> None:
    for steps in (1, workers, 40):
        result = papers.asynchronous_sgd(ONE, noiseless, turns(range(steps), workers), optimizers.sgd(0.2))
        assert float(result) == pytest.approx(quadratics.delayed(0.2, workers - 1, steps), rel=1e-9)


def test_a_share_of_late_gradients_is_computed_at_old_weights() -> None:
    """By hand: two workers, w = 1, rate 1/2: 1 - .5 = .5, then .5 - .5 * 1 = 0, then 0 - .5 * .5 = -.25."""
    result = papers.asynchronous_sgd(ONE, noiseless, turns(range(3), 2), optimizers.sgd(0.5))
    assert result.tolist() == [-0.25]


def test_staleness_divides_the_rate_after_the_first_update() -> None:
    """Three workers: staleness 0, 1, 2, 2, ...; from 1 the rates are 0.4, 0.4, 0.2, 0.2."""
    result = papers.staleness_aware(ONE, noiseless, turns(range(4), 3), 0.4)
    assert float(result) == pytest.approx(1 - 0.4 - 0.4 - 0.2 - 0.2 * 0.6)
    squared = papers.staleness_aware(ONE, noiseless, turns(range(3), 3), 0.4, power=2)
    assert float(squared) == pytest.approx(1 - 0.4 - 0.4 - 0.1)


def test_delay_compensation_corrects_the_late_gradient_by_its_square() -> None:
    """Two workers: the second gradient, 1, was computed at 1 and meets 0.5: 1 + 0.3 * 1 * (0.5 - 1)."""
    result = papers.delay_compensated(ONE, noiseless, turns(range(2), 2), 0.5, 0.3)
    assert float(result) == pytest.approx(0.5 - 0.5 * 0.85)
    adaptive = papers.delay_compensated_adaptively(ONE, noiseless, turns(range(2), 2), 0.5, 0.3)
    root = (0.95 * 0.05 + 0.05 + 1e-7) ** 0.5
    assert float(adaptive) == pytest.approx(0.5 - 0.5 * (1 - 0.5 * 0.3 / root))


@pytest.mark.parametrize("compensated", [papers.delay_compensated, papers.delay_compensated_adaptively])
def test_delay_compensation_of_no_strength_or_of_one_worker_is_asynchronous_sgd(
    compensated: Callable[..., Tensor],
) -> None:
    for workers, strength in ((3, 0.0), (1, 2.0)):
        result = compensated(UNIT, gradient, turns(minima(20), workers), 0.1, strength)
        plain = papers.asynchronous_sgd(UNIT, gradient, turns(minima(20), workers), optimizers.sgd(0.1))
        torch.testing.assert_close(result, plain)


@pytest.mark.parametrize("workers", [1, 3])
def test_downpour_that_exchanges_every_step_is_asynchronous_sgd(workers: int) -> None:
    servers: list[Callable[[], Optimizer]] = [lambda: optimizers.sgd(0.1), lambda: optimizers.adagrad(0.1)]
    for server in servers:
        result = papers.downpour(UNIT, gradient, turns(minima(20), workers), server(), 0.1, 1, 1)
        plain = papers.asynchronous_sgd(UNIT, gradient, turns(minima(20), workers), server())
        torch.testing.assert_close(result, plain)


def test_downpour_pushes_step_0_and_what_is_left_at_the_end() -> None:
    """Its gradients at fetched weights: 1; 1, .5, .25 (pushed at step 3); the fetch at 2 forgets a step."""
    pushed: list[float] = []

    def server(w: Tensor, g: Tensor) -> Tensor:
        pushed.append(float(g))
        return w - 0.5 * g

    papers.downpour(ONE, noiseless, turns(range(6), 1), server, 0.5, 2, 3)
    # fetch 1, push 1 -> .5; step 1 at .5 locally; fetch .5; steps 2, 3 at .5, .25; push -> -.125; ...
    assert pushed == [1.0, 0.5 + 0.5 + 0.25, -0.125 - 0.0625]


def test_elastic_averaging_without_force_is_independent_descent() -> None:
    for momentum in (0.0, 0.9):
        centre = papers.elastic_averaging(UNIT, gradient, turns(minima(20), 3), 0.1, 0.0, 1, momentum)
        assert torch.equal(centre, UNIT)
    more = [*turns(minima(20), 1), Turn("start", 0, UNIT)]
    never = papers.elastic_averaging(UNIT, gradient, more, 0.1, 1.0, 21)
    assert torch.equal(never, UNIT)  # at step 0 only, when there is no difference yet
    last = papers.elastic_averaging(UNIT, gradient, more, 0.1, 1.0, 20)
    torch.testing.assert_close(last, with_torch(minima(20), torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize(("workers", "period"), [(1, 1), (3, 1), (3, 4)])
def test_elastic_averaging_on_a_quadratic_is_its_matrix(momentum: float, workers: int, period: int) -> None:
    steps = 12
    result = papers.elastic_averaging(
        ONE, noiseless, turns(range(workers * steps), workers), 0.2, 0.15, period, momentum
    )
    vector = np.array([1.0] * (1 + workers) + [0.0] * workers)
    for step in range(steps):
        vector = quadratics.elastic_matrix(0.2, 0.15, workers, step % period == 0, momentum) @ vector
    assert float(result) == pytest.approx(vector[0], rel=1e-9)

"""The transcriptions of methods with rounds and local steps: special cases that are known another way."""

from __future__ import annotations

import numpy as np
import optimizers
import pytest
import quadratics
import torch
import transcriptions as papers
from problems import ONE, UNIT, gradient, minima, noiseless, with_torch
from turns import deal, turns


def test_backup_workers_drop_what_comes_late() -> None:
    rounds = [minima(5, seed) for seed in range(4)]
    result = papers.backup_workers(UNIT, gradient, rounds, 3, optimizers.sgd(0.1, 0.9))
    poisoned = [[*batches[:3], UNIT * torch.nan, UNIT * torch.nan] for batches in rounds]
    again = papers.backup_workers(UNIT, gradient, poisoned, 3, optimizers.sgd(0.1, 0.9))
    assert torch.equal(result, again)


def test_parallel_sgd_on_a_quadratic_is_its_closed_form() -> None:
    targets = torch.randn(3, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    queue = targets.T.flatten().unbind()
    result = papers.parallel_sgd(2 * ONE, lambda w, b: w - b, deal(queue, 3), 0.1)
    assert float(result) == pytest.approx(quadratics.local_mean(2.0, targets.numpy(), 0.1), rel=1e-9)


def test_local_sgd_on_a_quadratic_is_fewer_larger_steps() -> None:
    result = papers.local_sgd(ONE, noiseless, deal(range(24), 2), 0.1, 4)
    assert float(result) == pytest.approx(quadratics.local_factor(0.1, 4) ** 3)


def test_local_sgd_of_one_step_is_synchronous_and_of_all_steps_is_parallel() -> None:
    batches = minima(24)
    rounds = [batches[first : first + 3] for first in range(0, 24, 3)]
    one = papers.local_sgd(UNIT, gradient, deal(batches, 3), 0.1, 1)
    torch.testing.assert_close(one, papers.backup_workers(UNIT, gradient, rounds, 3, optimizers.sgd(0.1)))
    every = papers.local_sgd(UNIT, gradient, deal(batches, 3), 0.1, 8)
    torch.testing.assert_close(every, papers.parallel_sgd(UNIT, gradient, deal(batches, 3), 0.1))


def test_diloco_of_one_plain_step_is_sgd_on_the_mean() -> None:
    batches = minima(24)
    result = papers.diloco(
        UNIT, gradient, deal(batches, 3), 1, lambda: optimizers.sgd(1.0), optimizers.sgd(1.0)
    )
    means = [torch.stack(batches[first : first + 3]).mean(0) for first in range(0, 24, 3)]
    torch.testing.assert_close(result, with_torch(means, torch.optim.SGD, lr=1.0))


def test_diloco_of_one_worker_and_no_outer_momentum_is_its_inner_optimizer() -> None:
    """So the inner state lives on through the rounds."""
    plain = with_torch(minima(21), torch.optim.AdamW, lr=0.1)
    result = papers.diloco(
        UNIT, gradient, [minima(21)], 5, lambda: optimizers.adamw(0.1), optimizers.sgd(1.0)
    )
    torch.testing.assert_close(result, plain)
    alone = papers.asynchronous_diloco(
        UNIT, gradient, turns(minima(21), 1), lambda _: 5, lambda: optimizers.adamw(0.1), optimizers.sgd(1.0)
    )
    torch.testing.assert_close(alone, plain)


def test_diloco_on_a_quadratic_is_its_matrix() -> None:
    result = papers.diloco(
        ONE,
        noiseless,
        deal(range(2 * 12), 2),
        3,
        lambda: optimizers.sgd(0.1),
        optimizers.sgd(0.7, 0.9, nesterov=True),
    )
    matrix = np.linalg.matrix_power(quadratics.nesterov_matrix(0.1, 0.7, 0.9, 3), 4)
    assert float(result) == pytest.approx((matrix @ [1.0, 0.0])[0], rel=1e-9)


@pytest.mark.parametrize(("period", "c"), [(1, 0.0), (4, 0.0), (4, 0.1)])
def test_delayed_nesterov_on_a_quadratic_is_its_matrix(period: int, c: float) -> None:
    outer = optimizers.delayed_nesterov(0.7, 0.9, period, c)
    steps, rounds = 3, 8
    result = papers.asynchronous_diloco(
        ONE, noiseless, turns(range(steps * rounds), 1), lambda _: steps, lambda: optimizers.sgd(0.1), outer
    )
    matrix = quadratics.delayed_nesterov_matrix(0.1, 0.7, 0.9, period, c, steps)
    vector = np.linalg.matrix_power(matrix, rounds // period) @ [1.0, 0.0, 0.0]
    assert float(result) == pytest.approx(vector[0], rel=1e-9)


def test_delayed_nesterov_of_period_one_is_nesterov() -> None:
    outer = papers.asynchronous_sgd(
        UNIT, gradient, turns(minima(20), 1), optimizers.delayed_nesterov(0.1, 0.9, 1)
    )
    torch.testing.assert_close(
        outer, with_torch(minima(20), torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)
    )


def test_delayed_nesterov_moves_by_one_nesterov_step_of_the_mean_in_a_period() -> None:
    for c in (0.0, 0.1, 0.25):
        outer, plain = optimizers.delayed_nesterov(0.1, 0.9, 4, c), optimizers.sgd(0.1, 0.9, nesterov=True)
        w = expected = UNIT
        for number in range(3):
            gradients = minima(4, number)
            for g in gradients:
                w = outer(w, g)
            expected = plain(expected, torch.stack(gradients).mean(0))
        if c == 0.0:
            torch.testing.assert_close(w, expected)
        else:  # the momentum that is due later than its period is missing yet
            assert not torch.allclose(w, expected)


def test_asynchronous_diloco_of_one_step_is_asynchronous_sgd() -> None:
    result = papers.asynchronous_diloco(
        UNIT, gradient, turns(minima(20), 3), lambda _: 1, lambda: optimizers.sgd(0.1), optimizers.sgd(1.0)
    )
    plain = papers.asynchronous_sgd(UNIT, gradient, turns(minima(20), 3), optimizers.sgd(0.1))
    torch.testing.assert_close(result, plain)


def test_dynamic_local_updates_are_in_proportion_to_speed() -> None:
    assert papers.dynamic_local_updates([10.0, 5.0, 3.9], 50) == [50, 25, 19]

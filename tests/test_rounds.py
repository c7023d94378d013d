"""Rounds: the mean of one update of every active worker, in every order of arrival."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from freewheel.rounds import Round, weighted_mean
from freewheel.update import Update


def update(worker: int, samples: int = 4, *, last: bool = True, entries: tuple[int, ...] = ()) -> Update:
    """The same gradients whenever it is asked for the same worker and entries."""
    generator = torch.Generator().manual_seed(100 * worker + sum(entries))
    gradients: list[Tensor | None] = [torch.randn(3, 2, generator=generator)]
    return Update(gradients, entries, worker=worker, samples=samples, last=last)


def end(worker: int, samples: int = 4, rejected: str = "") -> Update:
    return Update([], (), worker=worker, samples=samples, rejected=rejected)


def only(means: list[Update]) -> Tensor:
    assert len(means) == 1
    gradient = means[0].gradients[0]
    assert gradient is not None
    return gradient


def gradient_of(worker: int, entries: tuple[int, ...] = ()) -> Tensor:
    return only([update(worker, entries=entries)])


def test_mean_of_unequal_minibatches_is_that_of_the_global_batch() -> None:
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    inputs, targets = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, dtype=torch.float64)

    def gradient(rows: slice) -> Tensor:
        loss = (inputs[rows] @ weight - targets[rows]).square().mean()
        return torch.autograd.grad(loss, weight)[0]

    shares = [slice(0, 4), slice(4, 10), slice(10, 11)]
    updates = [
        Update([gradient(rows)], worker=worker, samples=rows.stop - rows.start)
        for worker, rows in enumerate(shares)
    ]
    torch.testing.assert_close(only([weighted_mean(updates, 11)]), gradient(slice(0, 11)))


def test_a_gradient_that_one_worker_lacks_counts_as_zero() -> None:
    one, two = torch.ones(2), torch.full((2,), 5.0)
    first = Update([one.clone(), None, None], worker=0, samples=3)
    second = Update([None, two.clone(), None], worker=1, samples=1)
    mean = weighted_mean([first, second], 4)
    assert torch.equal(mean.gradients[0], one * 0.75)  # type: ignore[arg-type]
    assert torch.equal(mean.gradients[1], two * 0.25)  # type: ignore[arg-type]
    assert mean.gradients[2] is None


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_of_arrival_changes_nothing_bit_for_bit(order: tuple[int, ...]) -> None:
    def run(arrivals: tuple[int, ...]) -> tuple[Tensor, list[int]]:
        gathering = Round({0, 1, 2})
        means = [mean for worker in arrivals for mean in gathering.add(update(worker, 3 + worker))]
        assert gathering.is_over()
        return only(means), [closed.worker for closed in gathering.close()]

    (mean, closed), (expected, _) = run(order), run((0, 1, 2))
    assert torch.equal(mean, expected)
    assert closed == [0, 1, 2]


def test_nothing_is_given_out_before_everybody_has_contributed() -> None:
    gathering = Round({0, 1, 2})
    assert not gathering.is_over()
    assert gathering.add(update(2)) == []
    assert gathering.add(update(0)) == []
    assert not gathering.is_over()
    assert len(gathering.add(update(1))) == 1
    assert gathering.is_over()


def test_a_retired_worker_closes_the_round_for_those_who_wait() -> None:
    gathering = Round({0, 1, 2})
    assert gathering.add(update(0, 6)) == []
    assert gathering.add(update(2, 2)) == []
    mean = only(gathering.retire(1))
    torch.testing.assert_close(mean, gradient_of(0) * 0.75 + gradient_of(2) * 0.25)
    assert gathering.is_over()


def test_the_step_of_a_worker_that_retires_after_it_still_counts() -> None:
    gathering = Round({0, 1})
    assert gathering.add(update(1)) == []
    assert gathering.retire(1) == []
    assert not gathering.is_over()
    torch.testing.assert_close(only(gathering.add(update(0))), (gradient_of(0) + gradient_of(1)) / 2)
    assert [closed.worker for closed in gathering.close()] == [0, 1]


def test_a_rejected_step_has_no_weight() -> None:
    gathering = Round({0, 1, 2})
    gathering.add(update(0, 6))
    gathering.add(end(1, 100, rejected="non-finite loss"))
    mean = only(gathering.add(update(2, 2)))
    torch.testing.assert_close(mean, gradient_of(0) * 0.75 + gradient_of(2) * 0.25)


def test_a_round_of_rejected_steps_gives_nothing_and_ends() -> None:
    gathering = Round({0, 1})
    assert gathering.add(end(0, rejected="non-finite loss")) == []
    assert gathering.add(end(1, rejected="non-finite loss")) == []
    assert gathering.is_over()
    assert len(gathering.close()) == 2
    assert not gathering.is_over()


def test_pieces_are_given_out_one_by_one_as_they_become_complete() -> None:
    gathering = Round({0, 1})
    assert gathering.add(update(0, last=False, entries=(1,))) == []
    assert gathering.add(update(0, last=False, entries=(0,))) == []
    first = gathering.add(update(1, last=False, entries=(1,)))
    assert [mean.entries for mean in first] == [(1,)]
    torch.testing.assert_close(only(first), (gradient_of(0, (1,)) + gradient_of(1, (1,))) / 2)
    assert not gathering.is_over()
    assert gathering.add(end(0)) == []
    assert [mean.entries for mean in gathering.add(end(1))] == [(0,)]  # worker 1 did not use entry 0
    assert gathering.is_over()


def test_a_piece_that_one_worker_did_not_use_is_weighted_by_the_samples_of_all() -> None:
    gathering = Round({0, 1})
    gathering.add(update(0, 6, last=False, entries=(0,)))
    gathering.add(end(0, 6))
    torch.testing.assert_close(only(gathering.add(end(1, 2))), gradient_of(0, (0,)) * 0.75)


def test_rounds_follow_one_another_without_a_trace() -> None:
    gathering = Round({0, 1})
    for _ in range(3):
        gathering.add(update(0))
        torch.testing.assert_close(only(gathering.add(update(1))), (gradient_of(0) + gradient_of(1)) / 2)
        gathering.close()

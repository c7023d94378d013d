"""Exchanges: when a worker pulls, what it does with a gradient, and what it pushes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from freewheel.exchanges import Accruing, Differing, Elastic, Exchange, Fresh, Local
from freewheel.params import Parameters
from freewheel.rules import sgd
from freewheel.server import Server
from freewheel.update import Update, add_share


def local(workers: int = 1, pace: float = 1.0) -> Local:
    module = nn.Linear(2, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
        module.bias.fill_(3.0)
    parameters = Parameters(module)
    entries = parameters.layout.trainable
    views = [entry.view(parameters.flat) for entry in entries]
    return Local(parameters.flat, entries, views, 0, workers, None, lambda: pace)


def step(exchange: Exchange, scale: float = 1.0, **fields: Any) -> Update | None:
    return exchange.offer(Update([torch.full((1, 2), scale), torch.full((1,), scale)], samples=4, **fields))


def values(tensors: list[Tensor | None] | list[Tensor]) -> list[float]:
    return [value for tensor in tensors if tensor is not None for value in tensor.flatten().tolist()]


def pull_from(parameters: Parameters, target: Tensor) -> None:
    target.copy_(parameters.flat)


def no_pull(target: Tensor) -> None:
    raise AssertionError("nothing to pull for")


# --- fresh ---


@pytest.mark.parametrize("keeps", [False, True])
def test_fresh_pulls_before_and_pushes_after_every_step(keeps: bool) -> None:
    own = local()
    exchange = Fresh(own, keeps)
    for _ in range(3):
        assert exchange.wants_pull()
        assert exchange.arrived() is None
        pushed = step(exchange, 5.0)
        assert pushed is not None
        assert values(pushed.gradients) == [5.0] * 3
        assert (pushed.pulled is own.weights) == keeps
    assert exchange.target is own.flat
    assert exchange.flush(no_pull) is None


# --- accruing ---


def accrued(push_every: int, pull_every: int, steps: int, own: Local | None = None) -> list[tuple[bool, Any]]:
    exchange = Accruing(own or local(), push_every, pull_every, sgd(0.5))
    seen: list[tuple[bool, Any]] = []
    for number in range(steps):
        pulls = exchange.wants_pull()
        pushed = step(exchange, float(number + 1))
        seen.append((pulls, None if pushed is None else (values(pushed.gradients)[0], pushed.samples)))
    rest = exchange.flush(no_pull)
    seen.append((False, None if rest is None else (values(rest.gradients)[0], rest.samples)))
    return seen


def test_accruing_pushes_sums_and_what_is_left() -> None:
    pulls, pushes = zip(*accrued(push_every=3, pull_every=2, steps=6), strict=True)
    assert pulls == (True, False, True, False, True, False, False)
    assert pushes == ((1.0, 4), None, None, (9.0, 12), None, None, (11.0, 8))


def test_accruing_with_nothing_left_flushes_nothing() -> None:
    assert accrued(push_every=1, pull_every=1, steps=2)[-1] == (False, None)


def test_accruing_goes_on_with_weights_of_its_own_between_pulls() -> None:
    own = local()
    accrued(2, 5, 2, own)
    assert values(own.weights) == [-0.5, 0.5, 1.5]  # less half of one, and half of two


def test_accruing_that_pulls_before_every_step_leaves_its_weights_alone() -> None:
    own = local()
    accrued(2, 1, 3, own)
    assert values(own.weights) == [1.0, 2.0, 3.0]


def test_accruing_is_as_old_as_its_first_gradient() -> None:
    exchange = Accruing(local(), 2, 1, None)
    step(exchange, version=3, versions=(3, 4))
    step(exchange, version=5, versions=(5, 6))
    pushed = step(exchange, version=7, versions=(7, 8))
    assert pushed is not None
    assert (pushed.version, pushed.versions) == (5, (5, 6))


def test_a_step_that_was_given_up_is_pushed_alone_and_spoils_no_sum() -> None:
    for exchange in (
        Accruing(local(), 3, 2, sgd(0.5)),
        Differing(local(), sgd(0.5), 3),
        Elastic(local(), sgd(0.5), 0.5, 3, 0.0),
    ):
        step(exchange)
        kept = [value.clone() for value in exchange._local.weights] if isinstance(exchange, Differing) else []
        bad = exchange.offer(Update([], rejected="non-finite loss", samples=4))
        assert bad is not None
        assert (bad.rejected, bad.gradients) == ("non-finite loss", [])
        if isinstance(exchange, Differing):
            assert values(exchange._local.weights) == values(kept)


# --- differing ---


def test_differing_pushes_how_far_it_has_moved_and_begins_anew() -> None:
    own = local()
    exchange = Differing(own, sgd(0.5), steps=2)
    assert exchange.wants_pull()
    exchange.target.copy_(own.flat)
    exchange.arrived()
    assert not exchange.wants_pull()
    assert step(exchange, 1.0) is None
    pushed = step(exchange, 2.0)
    assert pushed is not None
    assert values(pushed.gradients) == [1.5] * 3  # where it came from less where it is: to be descended
    assert pushed.samples == 8
    assert exchange.wants_pull()
    exchange.target.fill_(7.0)
    assert values(own.weights) == [-0.5, 0.5, 1.5]  # until the pulled weights have arrived
    exchange.arrived()
    assert values(own.weights) == [7.0] * 3


def test_differing_flushes_what_it_has_moved_since() -> None:
    exchange = Differing(local(), sgd(0.5), steps=3)
    assert exchange.flush(no_pull) is None
    step(exchange, 1.0)
    rest = exchange.flush(no_pull)
    assert rest is not None
    assert (values(rest.gradients), rest.samples) == ([0.5] * 3, 4)
    assert exchange.flush(no_pull) is None
    assert exchange.wants_pull()


def test_differing_without_an_end_never_pushes_and_compares_with_the_server_when_it_is_measured() -> None:
    exchange = Differing(local(), sgd(0.5), steps=None)
    assert exchange.settles
    exchange.arrived()
    for _ in range(5):
        assert not exchange.wants_pull()
        assert step(exchange) is None

    def pull(target: Tensor) -> None:
        target.zero_()

    measured = exchange.flush(pull)
    assert measured is not None
    assert values(measured.gradients) == [1.5, 0.5, -0.5]  # zero less where it is
    assert values(exchange._local.weights) == [-1.5, -0.5, 0.5]  # it goes on undisturbed


@pytest.mark.parametrize(("pace", "expected"), [(1.0, 8), (0.5, 4), (0.26, 2), (0.01, 1)])
def test_a_slower_worker_takes_fewer_steps(pace: float, expected: int) -> None:
    for dynamic in (True, False):
        exchange = Differing(local(pace=pace), sgd(0.5), steps=8, dynamic=dynamic)
        exchange.arrived()
        taken = next(number for number in range(1, 100) if step(exchange) is not None)
        assert taken == (expected if dynamic else 8)


# --- elastic ---


def test_elastic_draws_the_centre_before_and_itself_after_the_step() -> None:
    own = local()
    exchange = Elastic(own, sgd(0.5), alpha=0.25, period=2, momentum=0.0)
    assert exchange.wants_pull()
    exchange.target.zero_()
    early = exchange.arrived()
    assert values(early.gradients) == [-0.25, -0.5, -0.75]  # descended by the server: towards the worker
    assert values(own.weights) == [1.0, 2.0, 3.0]  # the gradient is of the weights before the move
    assert step(exchange, 1.0) is None
    assert values(own.weights) == [1 - 0.25 - 0.5, 2 - 0.5 - 0.5, 3 - 0.75 - 0.5]
    assert not exchange.wants_pull()
    step(exchange, 1.0)
    assert values(own.weights) == [-0.25, 0.5, 1.25]
    assert exchange.wants_pull()
    assert exchange.flush(no_pull) is None


def test_elastic_moves_its_share_even_if_the_step_is_given_up() -> None:
    own = local()
    exchange = Elastic(own, sgd(0.5), alpha=0.25, period=2, momentum=0.0)
    exchange.target.zero_()
    exchange.arrived()
    exchange.offer(Update([], rejected="non-finite loss"))
    assert values(own.weights) == [0.75, 1.5, 2.25]


def test_elastic_counts_the_examples_since_the_last_exchange() -> None:
    exchange = Elastic(local(), sgd(0.5), alpha=0.25, period=2, momentum=0.5)
    assert exchange.arrived().samples == 0
    step(exchange)
    step(exchange)
    assert exchange.arrived().samples == 8


def test_sums_count_a_missing_gradient_as_zero() -> None:
    total: list[Tensor | None] = [torch.ones(2), None, None]
    add_share(total, [torch.full((2,), 3.0), torch.ones(1), None])
    assert [None if t is None else t.tolist() for t in total] == [[4.0, 4.0], [1.0], None]


def test_who_took_no_step_since_the_last_average_still_counts_in_the_next() -> None:
    module = nn.Linear(2, 1, bias=False)
    parameters = Parameters(module)
    parameters.flat.zero_()
    server = Server(parameters, sgd(1.0), 2, rounds=True)
    entries = parameters.layout.trainable
    flats = [parameters.flat.clone() for _ in range(2)]
    locals_ = [Local(flat, entries, [entry.view(flat) for entry in entries]) for flat in flats]
    workers = [Differing(local, sgd(1.0), None) for local in locals_]
    found = []
    for turn, steps in enumerate([{0: -3.0, 1: -1.0}, {1: -8.0}, {}]):
        for worker, gradient in steps.items():
            assert workers[worker].offer(Update([torch.full((1, 2), gradient)], samples=4)) is None
        for worker, exchange in enumerate(workers):
            update = exchange.flush(partial(pull_from, parameters))
            assert update is not None
            update.worker, update.sequence = worker, turn
            server.push(update)
        found.append(parameters.flat[0].item())
    # worker 0 is at 3 after 4 examples; worker 1 at 1 after 4, and at 9 after 8
    assert found == pytest.approx([2.0, 7.0, 7.0])
    assert server.samples == 12

"""Order and repetition: updates that commute may arrive in any order, and a duplicate changes nothing."""

from __future__ import annotations

import itertools

import pytest
import torch
from laws import COPIES, IN_FLIGHT, floats, most_shards, network, train
from torch import Tensor

import freewheel
from freewheel.book import REMEMBERED, Slot
from freewheel.params import Parameters
from freewheel.rules import Rule, RuleContext, chain, clip, sgd
from freewheel.server import Server
from freewheel.simulation import Network, constant, duplicate, lognormal, reorder, slow
from freewheel.update import Update

SENDING = {**COPIES, **IN_FLIGHT}
EXACT = [2.0**-number for number in range(12)]
"""Gradients whose sums are exact in float32 in every order."""


def server_of(shards: int = 1, rule: Rule | None = None, workers: int = 3) -> Server:
    return Server(Parameters(network()), rule or sgd(1.0), workers, shards=shards)


def gradients(server: Server, worker: int, sequence: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(100 * worker + sequence)
    views = server.parameters.trainable_views()
    return [torch.randn(view.shape, generator=generator) for view in views]


def push(server: Server, worker: int, sequence: int) -> str:
    update = Update(gradients(server, worker, sequence), worker=worker, sequence=sequence)
    if len(server.shards) > 1:
        update.versions = (0,) * len(server.shards)
    return server.push(update).status


@pytest.mark.parametrize("shards", [1, 4])
def test_updates_of_plain_sgd_may_arrive_in_any_order(shards: int) -> None:
    arrivals = [(worker, sequence) for worker in range(3) for sequence in range(3)]
    reference = server_of(shards)
    for worker, sequence in arrivals:
        assert push(reference, worker, sequence) == "applied"
    orders = itertools.islice(itertools.permutations(arrivals), 1, None, 40_000)
    for order in orders:
        server = server_of(shards)
        assert {push(server, worker, sequence) for worker, sequence in order} == {"applied"}
        torch.testing.assert_close(server.parameters.flat, reference.parameters.flat, rtol=1e-5, atol=1e-5)
        assert server.ledger() == reference.ledger()
        assert server.version == 9


@pytest.mark.parametrize("shards", [1, 4])
def test_sums_that_are_exact_are_the_same_in_any_order_bit_for_bit(shards: int) -> None:
    def run(order: list[int]) -> Tensor:
        server = server_of(shards)
        server.parameters.flat.zero_()
        for number in order:
            worker, sequence = number % 3, number // 3
            views = server.parameters.trainable_views()
            given: list[Tensor | None] = [torch.full_like(view, EXACT[number]) for view in views]
            server.push(Update(given, worker=worker, sequence=sequence, versions=(0,) * shards))
        return server.parameters.flat.clone()

    reference = run(list(range(12)))
    assert reference.abs().sum() > 0
    for seed in range(8):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
        assert torch.equal(run(order), reference)


def test_a_rule_with_momentum_does_not_commute() -> None:
    """Else the law would say nothing about the rule."""
    first, second = (server_of(rule=sgd(1.0, momentum=0.9)) for _ in range(2))
    for server, order in ((first, (0, 1, 2)), (second, (2, 1, 0))):
        for worker in order:
            push(server, worker, 0)
    assert not torch.allclose(first.parameters.flat, second.parameters.flat, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(
    "rule", [sgd(1.0, momentum=0.9), chain(clip(1.0), sgd(0.5))], ids=lambda r: r.describe
)
def test_duplicates_anywhere_change_nothing(shards: int, rule: Rule) -> None:
    reference, server = server_of(shards, rule), server_of(shards, rule)
    arrivals = [(0, 2), (1, 0), (0, 0), (2, 1), (0, 1), (1, 1), (2, 0)]
    for number, (worker, sequence) in enumerate(arrivals):
        push(reference, worker, sequence)
        assert push(server, worker, sequence) == "applied"
        for again in arrivals[: number + 1]:
            assert push(server, *again) == "duplicate"
    assert torch.equal(server.parameters.flat, reference.parameters.flat)
    assert server.versions() == reference.versions()
    assert server.ledger() == {**reference.ledger(), "duplicates": 28}


@pytest.mark.parametrize("shards", [1, 4])
def test_a_push_counts_once_however_late_it_is(shards: int) -> None:
    server = server_of(shards)
    for sequence in range(200):
        if sequence not in (0, 3):
            assert push(server, 0, sequence) == "applied"
    for late in (3, 0):
        assert push(server, 0, late) == "applied"
        assert push(server, 0, late) == "duplicate"
    assert push(server, 0, 100) == "duplicate"
    assert server.ledger()["applied"] == 200


def test_what_is_missing_is_not_remembered_for_ever() -> None:
    slot = Slot(RuleContext())
    for sequence in range(1, 3 * REMEMBERED, 2):
        slot.close(sequence)
    assert len(slot.missing) == REMEMBERED
    assert slot.has_seen(0)
    assert not slot.has_seen(3 * REMEMBERED - 2)
    slot.close(10**12)
    assert len(slot.missing) == REMEMBERED


def test_a_simulation_applies_what_a_slow_path_holds_up_for_long() -> None:
    result = train(
        network(),
        freewheel.downpour(0.01, 1, 1),
        freewheel.Simulated(0.01, faults=[reorder(0.2, 0.9)]),
        workers=1,
        batch_size=2,
    )
    assert result.ledger["duplicates"] == 0
    assert result.ledger["applied"] == result.steps


@pytest.mark.parametrize("method", [name for name in SENDING if name != "parallel_sgd"])
def test_a_simulation_in_which_everything_arrives_twice_is_the_same(method: str) -> None:
    modules = (network(), network())
    results = [
        train(
            module,
            SENDING[method],
            freewheel.Simulated(slow(lognormal(0.01, 0.5), {1: 4.0}), Network(0.004), faults=faults),
            workers=4,
            shards=most_shards(method),
        )
        for module, faults in zip(modules, ([], [duplicate(1.0)]), strict=True)
    ]
    assert torch.equal(floats(modules[0]), floats(modules[1]))
    once, twice = (result.ledger for result in results)
    assert once["duplicates"] == 0 < twice["duplicates"] <= twice["pushed"]
    assert {**twice, "duplicates": 0} == once
    assert results[0].seconds == results[1].seconds


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "local_sgd"])
def test_without_a_network_duplicates_come_at_once_and_change_nothing(method: str) -> None:
    modules = (network(), network())
    for module, faults in zip(modules, ([], [duplicate(1.0)]), strict=True):
        train(
            module,
            freewheel.methods.by_name(method),
            freewheel.Simulated(constant(0.01), faults=faults),
            workers=3,
        )
    assert torch.equal(floats(modules[0]), floats(modules[1]))

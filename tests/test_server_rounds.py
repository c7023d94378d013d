"""Rounds that meet rules which gather, and shards that drop their part."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from freewheel.checkpoints.tree import copied
from freewheel.params import Parameters
from freewheel.rules import Rule, RuleContext, State, average, chain, finite, sgd, stateless
from freewheel.server import Receipt, Server
from freewheel.update import Update


def server_of(rule: Rule, workers: int, shards: int = 1, backup: int = 0) -> Server:
    module = nn.Linear(4, 2)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
    return Server(Parameters(module), rule, workers, True, shards=shards, backup=backup)


def push(server: Server, worker: int, sequence: int, value: float = 1.0, samples: int = 2) -> Receipt:
    versions = server.pull(server.parameters.flat.clone())
    update = Update([torch.ones(2, 4), torch.full((2,), value)], samples=samples)
    update.worker, update.sequence = worker, sequence
    update.version, update.versions = versions[0], versions if len(versions) > 1 else ()
    return server.push(update)


def close(server: Server, sequence: int, samples: int = 2) -> None:
    """One round of everybody, with another gradient each time."""
    for worker in range(server.workers):
        push(server, worker, sequence, float(sequence), samples)


@pytest.mark.parametrize("shards", [1, 3])
def test_rounds_that_are_absorbed_are_in_the_book_with_all_their_pushes_and_examples(shards: int) -> None:
    server = server_of(chain(average(2), sgd(1.0)), 3, shards)
    expected = [(0, 0, 3, 0), (3, 3, 0, 12), (3, 3, 3, 12), (6, 6, 0, 24), (6, 6, 3, 24)]
    for sequence, (applied, absorbed, pending, samples) in enumerate(expected):
        close(server, sequence)
        book = server.ledger()
        assert (book["applied"], book["absorbed"], book["pending"]) == (applied, absorbed, pending)
        assert server.samples == samples


def test_rounds_count_by_all_their_examples_in_an_average_of_rounds() -> None:
    server = server_of(chain(average(2), sgd(1.0)), 2)
    close(server, 0)  # four examples, gradient 0
    server.retire(1)
    push(server, 0, 1, 3.0)  # two examples
    assert server.parameters.trainable_views()[1].tolist() == pytest.approx([-1.0, -1.0])
    assert server.samples == 6


def test_a_mean_that_one_shard_drops_makes_nobody_late() -> None:
    server = server_of(chain(finite(scope="piece"), sgd(1.0)), 3, shards=2, backup=1)
    for sequence, value in enumerate([math.nan, 1.0, 1.0]):
        for worker in range(2):
            assert push(server, worker, sequence, value).status == "pending"
    assert server.ledger()["dropped"] == {"non-finite": 2}
    assert server.ledger()["applied"] == 4


def test_a_rule_that_raises_behind_an_average_of_rounds_leaves_nothing_pending() -> None:
    def apply(update: Update, state: State, context: RuleContext) -> Update:
        raise ArithmeticError("of a rule")

    rule = Rule("piece", stateless, apply, "raising()")
    server = server_of(chain(average(2), rule, sgd(1.0)), 2)
    close(server, 0)
    with pytest.raises(ArithmeticError):
        close(server, 1)
    book = server.ledger()
    assert (book["pushed"], book["absorbed"], book["pending"], book["dropped"]) == (4, 2, 0, {"error": 2})
    close(server, 2)
    assert (server.ledger()["pending"], server.samples) == (2, 0)


def push_by_layer(server: Server, worker: int) -> None:
    """A worker's step, one parameter at a time; the last piece ends it."""
    version = server.pull(server.parameters.flat.clone())[0]
    for entry, shape in [(1, (2,)), (0, (2, 4))]:
        update = Update([torch.full(shape, worker + 1.0)], entries=(entry,), samples=2, last=entry == 0)
        update.worker, update.sequence, update.version = worker, 0, version
        server.push(update)


def test_a_restored_round_by_layer_is_completed_by_who_has_no_further_step() -> None:
    rule = sgd(1.0, momentum=0.9)
    server, again = server_of(rule, 3), server_of(rule, 3)
    push_by_layer(server, 0)
    push_by_layer(server, 1)
    again.restore(copied(server.state()))
    for one in (server, again):
        one.retire(2)
    assert again.parameters.trainable_views()[1].tolist() == pytest.approx([-1.5, -1.5])
    assert torch.equal(again.parameters.flat, server.parameters.flat)
    assert again.ledger() == server.ledger()

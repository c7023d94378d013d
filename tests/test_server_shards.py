"""A server of several shards: the same weights as of one, rules of the whole once, versions of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.rules import (
    Rule,
    RuleContext,
    State,
    adagrad,
    adam,
    adamw,
    average,
    chain,
    clip,
    clip_value,
    damp,
    delay_compensate,
    delayed_nesterov,
    expire,
    finite,
    frozen,
    krum,
    median,
    partition,
    rmsprop,
    sgd,
    stateless,
    trimmed_mean,
)
from freewheel.server import Receipt, Server
from freewheel.shards import split
from freewheel.update import Update

SHARDS = (2, 7)
DESCENTS = [
    sgd(0.1),
    sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    adagrad(0.1),
    rmsprop(0.01),
    adam(0.01, weight_decay=0.1),
    adamw(0.01),
    delayed_nesterov(0.5, buffer=3, activation=0.2),
    partition({"*.bias": frozen(), "0.*": adam(0.01), "*": sgd(0.1, momentum=0.5)}),
]
CHAINS = [
    chain(clip(0.5), sgd(0.1, momentum=0.9)),
    chain(finite(), clip_value(0.3), adam(0.01)),
    chain(average(2), sgd(0.1)),
    chain(median(3), clip_value(0.2), sgd(0.1, momentum=0.5)),
    chain(trimmed_mean(3, 1), adagrad(0.1)),
    chain(krum(3, 0), sgd(0.1)),
    chain(damp(1.0), sgd(0.1)),
    chain(expire(2), sgd(0.1)),
    chain(delay_compensate(0.5), sgd(0.1)),
    chain(delay_compensate(0.5, adaptive=True), sgd(0.1)),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    module[2].weight = nn.Parameter(torch.randn(3, 2).T)  # of other strides
    return module


def server_of(rule: Rule, shards: int = 1, workers: int = 3, rounds: bool = False, backup: int = 0) -> Server:
    return Server(Parameters(network()), rule, workers, rounds, backup=backup, shards=shards)


def gradients(server: Server, seed: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    views = server.parameters.trainable_views()
    return [torch.empty_like(view).copy_(torch.randn(view.shape, generator=generator)) for view in views]


def arrivals(server: Server, count: int = 9) -> list[Receipt]:
    """Three workers in turn, each two updates late; the last one leaves out a weight."""
    workers, pulled = server.workers, server.parameters.trainable_views()
    before = [view.clone() for view in pulled]
    receipts = []
    for number in range(count):
        late = max(0, number - 2)
        update = Update(gradients(server, number), (), late, number % workers, number // workers, 4)
        update.pulled = before
        if len(server.shards) > 1:
            update.versions = tuple(min(late, shard.version) for shard in server.shards)
        if number == count - 1:
            update.gradients[3] = None
        receipts.append(server.push(update))
    return receipts


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("rule", [*DESCENTS, *CHAINS], ids=lambda rule: rule.describe)
def test_several_shards_give_the_weights_of_one(rule: Rule, shards: int) -> None:
    one, several = server_of(rule), server_of(rule, shards)
    before = one.parameters.flat.clone()
    first, second = arrivals(one), arrivals(several)
    torch.testing.assert_close(several.parameters.flat, one.parameters.flat, rtol=1e-5, atol=1e-6)
    assert not torch.equal(one.parameters.flat, before)
    assert [receipt.status for receipt in first] == [receipt.status for receipt in second]
    assert one.ledger() == several.ledger()
    assert (one.version, one.samples) == (several.version, several.samples)
    assert several.versions() == (several.version,) * shards


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("backup", [0, 1])
@pytest.mark.parametrize("rule", [DESCENTS[1], CHAINS[0], CHAINS[2]], ids=lambda rule: rule.describe)
def test_rounds_on_several_shards_give_the_weights_of_one(rule: Rule, shards: int, backup: int) -> None:
    def run(count: int) -> Server:
        server = server_of(rule, count, rounds=True, backup=backup)
        for number in range(12):
            worker, sequence = number % 3, number // 3
            update = Update(gradients(server, number), (), server.version, worker, sequence, 4 + number % 2)
            server.push(update)
        return server

    one, several = run(1), run(shards)
    torch.testing.assert_close(several.parameters.flat, one.parameters.flat, rtol=1e-5, atol=1e-6)
    assert one.ledger() == several.ledger()
    assert one.version == several.version > 0


def counting(scope: str, seen: list[int]) -> Rule:
    def apply(update: Update, state: State, context: RuleContext) -> Update:
        seen.append(sum(gradient.numel() for gradient in update.gradients if gradient is not None))
        return update

    return Rule(scope, stateless, apply, f"counting({scope})")  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [1, 3])
def test_rules_of_the_whole_see_an_update_once_and_those_of_pieces_every_shard(shards: int) -> None:
    whole: list[int] = []
    pieces: list[int] = []
    rule = chain(counting("piece", whole), counting("update", whole), counting("piece", pieces), sgd(0.1))
    server = server_of(rule, shards)
    size = sum(view.numel() for view in server.parameters.trainable_views())
    server.push(Update(gradients(server, 0)))
    assert whole == [size, size]  # a rule of pieces that comes before one of the whole runs with it
    assert len(pieces) == shards
    assert sum(pieces) == size


def test_a_chain_is_split_behind_its_last_rule_of_the_whole() -> None:
    head, tail = split(chain(clip_value(1.0), clip(1.0), clip_value(2.0), sgd(0.1)))
    assert head is not None
    assert (len(head.parts), len(tail.parts)) == (2, 2)
    descent = sgd(0.1)
    assert split(descent) == (None, descent)


def test_a_descent_of_whole_updates_cannot_be_cut() -> None:
    descent = Rule("update", stateless, sgd(0.1).apply, "whole()", descends=True)
    with pytest.raises(ConfigurationError, match=r"`rule` whole\(\) writes.*cannot be cut.*use shards=1"):
        server_of(descent, 2)
    assert server_of(descent, 1).shards[0].numel == 29


# --- versions ---


def late(server: Server, number: int, versions: tuple[int, ...]) -> Receipt:
    update = Update(gradients(server, number), worker=number % 3, sequence=number // 3)
    update.versions = versions
    return server.push(update)


def test_staleness_is_that_of_the_shard_with_most() -> None:
    server = server_of(sgd(0.1), 2)
    assert late(server, 0, (0, 0)).staleness == 0
    assert late(server, 1, (1, 0)).staleness == 1
    assert late(server, 2, (0, 2)).staleness == 2
    assert late(server, 3, (3, 3)).staleness == 0


def test_a_rule_of_the_whole_is_told_the_staleness_of_the_shard_with_most() -> None:
    server = server_of(chain(expire(1), finite(), sgd(0.1)), 2)
    assert [late(server, number, (number, number)).status for number in range(2)] == ["applied"] * 2
    assert late(server, 2, (1, 2)).status == "applied"
    assert late(server, 3, (1, 3)).status == "expired"
    assert late(server, 4, (3, 1)).status == "expired"


def test_a_pull_gives_the_version_of_every_shard() -> None:
    server = server_of(sgd(0.1), 2)
    update = Update(gradients(server, 0), versions=(0, 0))
    assert server.admit(update) is None
    server.apply(server.shards[1], update)
    target = torch.zeros_like(server.parameters.flat)
    assert server.pull(target) == server.versions() == (0, 1)
    for shard in server.shards:
        assert torch.equal(target[shard.span], server.parameters.flat[shard.span])
    server.apply(server.shards[0], update)
    assert server.version == 0  # until it is finished
    server.finish(update, server.settled(update))
    assert (server.version, server.versions()) == (1, (1, 1))
    assert server_of(sgd(0.1), 1).versions() == ()


def test_an_update_that_a_rule_of_the_whole_drops_is_on_no_shard() -> None:
    server = server_of(chain(finite(), sgd(0.1)), 3)
    bad = gradients(server, 0)
    assert bad[0] is not None
    bad[0][0, 0] = torch.inf
    before = server.parameters.flat.clone()
    assert server.push(Update(bad, versions=(0, 0, 0))).status == "non-finite"
    assert server.push(Update([], sequence=1, rejected="non-finite loss")).status == "non-finite loss"
    assert torch.equal(server.parameters.flat, before)
    assert server.versions() == (0, 0, 0)
    assert server.ledger()["dropped"] == {"non-finite": 1, "non-finite loss": 1}


def test_an_update_that_one_shard_drops_is_not_booked_as_applied() -> None:
    server = server_of(chain(finite("piece"), sgd(0.1)), 2)
    bad = gradients(server, 0)
    assert bad[0] is not None
    bad[0][0, 0] = torch.nan
    assert server.push(Update(bad, versions=(0, 0))).status == "non-finite"
    assert server.versions() == (0, 1)
    assert (server.ledger()["dropped"], server.version) == ({"non-finite": 1}, 0)


@pytest.mark.parametrize("scope", ["piece", "update"])
@pytest.mark.parametrize("rounds", [False, True])
def test_an_update_that_a_rule_raises_about_is_dropped(rounds: bool, scope: Any) -> None:
    def apply(update: Update, state: State, context: RuleContext) -> Update:
        raise ArithmeticError("of a rule")

    rule = chain(Rule(scope, stateless, apply, "raising()"), sgd(0.1))
    server = server_of(rule, shards=3, workers=1, rounds=rounds)
    with pytest.raises(ArithmeticError):
        server.push(Update(gradients(server, 0)))
    book = server.ledger()
    assert (book["pushed"], book["pending"], book["dropped"]) == (1, 0, {"error": 1})

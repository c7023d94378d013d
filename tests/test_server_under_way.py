"""Updates of one worker that are under way to the shards at the same time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from freewheel.params import Parameters
from freewheel.rules import Rule, average, chain, finite, sgd
from freewheel.server import Receipt, Server
from freewheel.update import Update


def server_of(rule: Rule, shards: int) -> Server:
    torch.manual_seed(0)
    return Server(Parameters(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))), rule, 1, shards=shards)


def update(server: Server, sequence: int) -> Update:
    generator = torch.Generator().manual_seed(sequence)
    views = server.parameters.trainable_views()
    given: list[Tensor | None] = [torch.randn(view.shape, generator=generator) for view in views]
    return Update(given, sequence=sequence, versions=(0,) * len(server.shards))


def under_way(server: Server, updates: list[Update]) -> list[str]:
    """Each comes to the first shard before any comes to the last."""
    assert [server.admit(one) for one in updates] == [None] * len(updates)
    for shard in server.shards:
        for one in updates:
            server.apply(shard, one)
    verdicts = [server.settled(one) for one in updates]
    for one, verdict in zip(updates, verdicts, strict=True):
        server.finish(one, verdict)
    return verdicts


@pytest.mark.parametrize("bad", [0, 1])
def test_the_verdict_is_of_the_update_and_not_of_the_worker(bad: int) -> None:
    server = server_of(chain(finite("piece"), sgd(0.1)), 3)
    updates = [update(server, sequence) for sequence in range(2)]
    spoilt = updates[bad].gradients[0]
    assert spoilt is not None
    spoilt[0, 0] = torch.nan
    expected = ["applied", "applied"]
    expected[bad] = "non-finite"
    assert under_way(server, updates) == expected


def test_what_an_aggregate_releases_is_booked_whatever_comes_meanwhile() -> None:
    server = server_of(chain(average(2), sgd(0.1)), 2)
    assert server.admit(update(server, 0)) == Receipt("absorbed", 0)
    aggregate = update(server, 1)
    assert server.admit(aggregate) is None
    assert server.admit(update(server, 2)) == Receipt("absorbed", 0)
    for shard in server.shards:
        server.apply(shard, aggregate)
    server.finish(aggregate, server.settled(aggregate))
    book = server.ledger()
    assert (book["pushed"], book["applied"], book["absorbed"], book["pending"]) == (3, 1, 1, 1)

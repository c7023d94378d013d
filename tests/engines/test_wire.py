"""The wire: when messages arrive, what they take of the shards, and that nobody overtakes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from freewheel.engines.wire import BYTES, Wire
from freewheel.params import Parameters
from freewheel.rules import sgd
from freewheel.server import Receipt, Server
from freewheel.simulation import Agenda, Fault, FaultPlan, Network, ServerCost, duplicate, lose, reorder
from freewheel.update import Update

ELEMENTS = 96  # in two weights
SIZE = BYTES * ELEMENTS


def wired(
    shards: int = 1,
    workers: int = 1,
    network: Network | None = None,
    cost: ServerCost | None = None,
    faults: tuple[Fault, ...] = (),
) -> tuple[Agenda, Server, Wire]:
    parameters = Parameters(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)))
    server, agenda = Server(parameters, sgd(1.0), workers, shards=shards), Agenda()
    plan = FaultPlan(faults)
    return agenda, server, Wire(agenda, server, network or Network(), cost or ServerCost(), plan, seed=0)


def update(server: Server, sequence: int = 0, worker: int = 0, **fields: Any) -> Update:
    given = [torch.ones(view.shape) for view in server.parameters.trainable_views()]
    made = Update(list(given), worker=worker, sequence=sequence, **fields)
    made.versions = (0,) * len(server.shards) if len(server.shards) > 1 else ()
    return made


class Heard:
    """Keeps what is called back, and when."""

    def __init__(self, agenda: Agenda) -> None:
        self.agenda = agenda
        self.pulls: list[tuple[tuple[int, ...], float]] = []
        self.booked: list[tuple[Receipt | None, float]] = []

    def served(self, versions: tuple[int, ...], arrival: float) -> None:
        self.pulls.append((versions, arrival))

    def book(self, receipt: Receipt | None) -> None:
        self.booked.append((receipt, self.agenda.now))


def test_without_a_network_everything_happens_at_once_and_without_events() -> None:
    agenda, server, wire = wired(shards=3)
    heard = Heard(agenda)
    wire.push(update(server), heard.book)
    wire.pull(0, torch.empty_like(server.parameters.flat), heard.served)
    assert len(agenda) == 0
    assert heard.booked == [(Receipt("applied", 0), 0.0)]
    assert heard.pulls == [((1, 1, 1), 0.0)]


@pytest.mark.parametrize("shards", [1, 3, 4])
def test_a_pull_is_a_request_and_an_answer_a_shard(shards: int) -> None:
    """Answers come one after the other over the worker's link."""
    latency, rate = 0.5, 64.0
    agenda, server, wire = wired(shards, network=Network(latency, rate))
    heard, target = Heard(agenda), torch.full_like(server.parameters.flat, torch.nan)
    wire.pull(0, target, heard.served)
    agenda.run()
    assert heard.pulls == [((0,) * shards, latency + SIZE / rate + latency)]
    assert torch.equal(target, server.parameters.flat)
    assert [station.jobs for station in wire.stations] == [1] * shards
    assert (wire.links.sent, wire.links.received) == ([0], [SIZE])


@pytest.mark.parametrize("shards", [1, 3])
def test_a_request_that_came_with_the_push_takes_no_latency(shards: int) -> None:
    agenda, _, wire = wired(shards, network=Network(0.5))
    heard = Heard(agenda)
    wire.pull(0, None, heard.served, asked=True)
    agenda.run()
    assert heard.pulls == [((0,) * shards, 0.5)]


def test_a_push_takes_the_link_the_latency_and_the_server() -> None:
    agenda, server, wire = wired(network=Network(0.5, 64.0), cost=ServerCost(2.0, 0.0, 0.25))
    heard = Heard(agenda)
    wire.push(update(server), heard.book)
    agenda.run()
    assert heard.booked == [(Receipt("applied", 0), SIZE / 64.0 + 0.5 + 2.0 + 0.25 * SIZE)]
    assert wire.links.sent == [SIZE]
    assert wire.stations[0].bytes == SIZE
    assert wire.stations[0].busy_s == 2.0 + 0.25 * SIZE


def test_shards_serve_at_the_same_time() -> None:
    """Four of them take a quarter of the time, after a message that takes none."""
    seconds = []
    for shards in (1, 4):
        agenda, server, wire = wired(shards, cost=ServerCost(seconds_per_byte=1.0))
        heard = Heard(agenda)
        wire.push(update(server), heard.book)
        agenda.run()
        seconds.append(heard.booked[0][1])
    assert seconds == [SIZE, SIZE / 4]


def test_a_pull_while_a_push_is_under_way_finds_some_shards_of_the_new_version() -> None:
    agenda, server, wire = wired(3, workers=2, network=Network(0.0, SIZE / 3.0))
    before, heard = server.parameters.flat.clone(), Heard(agenda)
    wire.push(update(server), heard.book)  # a shard a second
    target = torch.zeros_like(before)
    agenda.at(1.5, lambda: wire.pull(1, target, heard.served))
    agenda.run(until=1.6)
    assert server.versions() == (1, 0, 0)
    assert server.version == 0
    agenda.run()
    assert heard.pulls[0][0] == (1, 0, 0)
    first = server.shards[0].span
    assert torch.equal(target[first], before[first] - 1)
    assert torch.equal(target[first.stop :], before[first.stop :])
    assert (server.versions(), server.version) == ((1, 1, 1), 1)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_request_never_overtakes_the_push_before_it(shards: int) -> None:
    """However large the push and however uneven the latency: it is one connection."""
    network = Network(0.1, 50.0, 80.0, jitter=2.0)
    agenda, server, wire = wired(shards, 3, network, ServerCost(0.3, 0.1, 0.001))
    heard = Heard(agenda)
    pulled: list[tuple[int, tuple[int, ...]]] = []

    def exchange(worker: int, sequence: int) -> None:
        wire.push(update(server, sequence, worker), heard.book)
        wire.pull(worker, None, lambda versions, arrival: pulled.append((sequence, versions)))

    for worker in range(3):
        for sequence in range(8):
            agenda.at(0.01 * sequence, partial(exchange, worker, sequence))
    agenda.run()
    assert len(pulled) == 24
    for sequence, versions in pulled:
        assert all(version >= sequence + 1 for version in versions)
    assert server.ledger()["applied"] == 24


def test_a_pull_that_takes_no_time_is_served_after_the_push_that_is_done_as_it_comes() -> None:
    """Though its arrival was known before the push had come: first come, first served."""
    agenda, server, wire = wired(workers=2, network=Network(1.0), cost=ServerCost(seconds_per_push=0.5))
    heard = Heard(agenda)
    wire.push(update(server), heard.book)
    agenda.at(0.5, lambda: wire.pull(1, None, heard.served))
    agenda.run()
    assert heard.booked == [(Receipt("applied", 0), 1.5)]
    assert heard.pulls == [((1,), 2.5)]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_push_is_booked_with_the_staleness_that_its_shards_found(shards: int) -> None:
    agenda, server, wire = wired(shards, 4, Network(0.1))
    heard = Heard(agenda)
    for worker in range(4):
        wire.push(update(server, worker=worker), heard.book)
    agenda.run()
    assert [receipt for receipt, _ in heard.booked] == [Receipt("applied", late) for late in range(4)]


def test_a_reordered_push_is_overtaken_and_applied_all_the_same() -> None:
    agenda, server, wire = wired(3, network=Network(0.1), faults=(reorder(0.5, 10.0),))
    heard = Heard(agenda)
    for sequence in range(20):
        wire.push(update(server, sequence, samples=sequence), heard.book)
    agenda.run()
    times = [time for _, time in heard.booked]
    assert set(times) == {0.1, 10.1}
    assert server.ledger()["applied"] == 20
    assert server.versions() == (20, 20, 20)


def test_a_lost_push_takes_the_link_nothing_else_and_is_booked_as_none() -> None:
    agenda, server, wire = wired(3, network=Network(0.1), faults=(lose(1.0),))
    heard = Heard(agenda)
    wire.push(update(server), heard.book)
    agenda.run()
    assert heard.booked == [(None, 0.0)]
    assert (server.ledger()["dropped"], wire.links.sent, server.ledger()["pushed"]) == (
        {"lost": 1},
        [SIZE],
        1,
    )


def test_what_comes_after_a_lost_push_waits_for_the_link_all_the_same() -> None:
    agenda, server, wire = wired(network=Network(0.0, SIZE / 2.0), faults=(lose(1.0),))
    heard = Heard(agenda)
    wire.push(update(server), heard.book)
    wire.pull(0, None, heard.served)
    agenda.run()
    assert heard.pulls == [((0,), 2.0 + 2.0)]


@pytest.mark.parametrize("network", [Network(), Network(0.1)], ids=["instant", "network"])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_duplicate_takes_the_link_twice_and_is_booked_once(shards: int, network: Network) -> None:
    agenda, server, wire = wired(shards, network=network, faults=(duplicate(1.0),))
    before, heard = server.parameters.flat.clone(), Heard(agenda)
    wire.push(update(server), heard.book)
    agenda.run()
    assert [receipt for receipt, _ in heard.booked] == [Receipt("applied", 0)]
    assert wire.links.sent == [2 * SIZE]
    assert server.ledger()["duplicates"] == 1
    for entry in server.parameters.layout.trainable:
        assert torch.equal(entry.view(server.parameters.flat), entry.view(before) - 1)


@pytest.mark.parametrize("network", [Network(), Network(0.1)], ids=["instant", "network"])
@pytest.mark.parametrize("shards", [1, 3])
def test_what_a_push_takes_is_what_it_was_compressed_to(shards: int, network: Network) -> None:
    agenda, server, wire = wired(shards, network=network)
    heard = Heard(agenda)
    wire.push(update(server, wire_bytes=48), heard.book)
    wire.push(Update([], sequence=1, rejected="non-finite loss"), heard.book)
    agenda.run()
    assert wire.links.sent == [48]
    assert sum(station.bytes for station in wire.stations) == 48
    assert server.ledger()["pushed"] == 2


@pytest.mark.parametrize("workers", [1, 2, 4, 5, 8, 16])
def test_throughput_is_that_of_the_workers_until_the_server_is_full(workers: int) -> None:
    """A worker computes for c, then waits for its push of s: W / (c + s), at most 1 / s."""
    compute, serve, until = 4.0, 1.0, 4000.0
    agenda, server, wire = wired(workers=workers, cost=ServerCost(seconds_per_push=serve))
    sent = [0] * workers

    def step(worker: int) -> None:
        agenda.at(agenda.now + compute, lambda: push(worker))

    def push(worker: int) -> None:
        wire.push(Update([], worker=worker, sequence=sent[worker]), lambda receipt: None)
        sent[worker] += 1
        wire.pull(worker, None, lambda versions, arrival: step(worker))

    for worker in range(workers):
        step(worker)
    agenda.run(until)
    expected = min(workers / (compute + serve), 1 / serve)
    assert server.version / until == pytest.approx(expected, abs=2 * workers / until)
    utilisation = min(1.0, workers * serve / (compute + serve))
    assert wire.stations[0].utilisation(until) == pytest.approx(utilisation, abs=0.01)


def test_what_waits_at_a_full_server_grows_with_the_workers() -> None:
    """All push at once: the k-th is served after k; the mean wait is (W - 1) s / 2."""
    agenda, server, wire = wired(workers=9, cost=ServerCost(seconds_per_push=0.5))
    heard = Heard(agenda)
    for worker in range(9):
        wire.push(update(server, worker=worker), heard.book)
    agenda.run()
    assert [time for _, time in heard.booked] == [0.5 * (number + 1) for number in range(9)]
    assert [receipt.staleness for receipt, _ in heard.booked if receipt] == list(range(9))
    assert math.isclose(wire.stations[0].mean_wait(), 8 * 0.5 / 2)

"""The network: arithmetic of links, jitter, and quantities as people write them."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable

import pytest

from freewheel.errors import ConfigurationError
from freewheel.simulation import Links, Network, parse_rate, parse_seconds


def test_a_message_takes_the_latency_and_its_time_on_the_slower_link() -> None:
    for own, shared in [(100.0, 400.0), (400.0, 100.0), (100.0, 100.0)]:
        network = Network(0.5, own, shared)
        assert Links(network, 1).send(0, 2.0, 300) == 2.0 + 3.0 + 0.5
        assert Links(network, 1).receive(0, 2.0, 300) == 2.0 + 3.0 + 0.5
        assert network.seconds(300) == 3.5


def test_messages_of_one_worker_share_its_link() -> None:
    links = Links(Network(1.0, bandwidth_bytes_per_s=10.0), 2)
    assert [links.send(0, 0.0, 20) for _ in range(3)] == [3.0, 5.0, 7.0]
    assert links.send(1, 0.0, 20) == 3.0
    assert links.send(0, 100.0, 20) == 103.0


def test_both_directions_at_once() -> None:
    links = Links(Network(0.0, 10.0, 10.0), 1)
    assert links.send(0, 0.0, 20) == links.receive(0, 0.0, 20) == 2.0


def test_the_shared_link_serialises_the_transfers_of_all_workers() -> None:
    links = Links(Network(0.25, math.inf, shared_bytes_per_s=100.0), 4)
    assert [links.send(worker, 0.0, 50) for worker in range(4)] == [0.75, 1.25, 1.75, 2.25]
    assert (links.inbound.busy_s, links.inbound.waited_s, links.outbound.busy_s) == (2.0, 3.0, 0.0)
    assert links.receive(3, 0.0, 50) == 0.75


def test_a_worker_whose_own_link_is_busy_does_not_block_the_shared_one() -> None:
    links = Links(Network(0.0, 1.0, 10.0), 2)
    assert [links.send(0, 0.0, 10) for _ in range(3)] == [10.0, 20.0, 30.0]
    assert links.send(1, 3.0, 10) == 13.0


def test_bytes_are_counted_by_worker_and_direction() -> None:
    links = Links(Network(), 3)
    for worker, size in ((0, 5), (2, 7), (0, 1)):
        assert links.send(worker, 1.0, size) == 1.0
    links.receive(2, 1.0, 100)
    assert (links.sent, links.received) == ([6, 0, 7], [0, 0, 100])
    assert (links.inbound.bytes, links.outbound.bytes, links.inbound.jobs) == (13, 100, 3)


def test_jitter_is_log_normal_around_the_latency() -> None:
    draw = Network(0.2, jitter=0.5).latencies(0, 0)
    logs = [math.log(draw()) for _ in range(20_000)]
    assert statistics.fmean(logs) == pytest.approx(math.log(0.2), abs=4 * 0.5 / math.sqrt(20_000))
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.03)


def test_jitter_depends_on_seed_and_worker_alone() -> None:
    network = Network(1.0, jitter=0.3)

    def arrivals(seed: int, worker: int, others: int) -> list[float]:
        links = Links(network, 3, seed)
        for _ in range(others):
            links.send(2, 0.0, 1)
        return [links.send(worker, 10.0 * number, 1) for number in range(20)]

    assert arrivals(0, 0, others=0) == arrivals(0, 0, others=9)
    assert len({tuple(arrivals(seed, worker, 0)) for seed in (0, 1) for worker in (0, 1)}) == 4


def test_jitter_does_not_reorder_the_messages_of_a_worker() -> None:
    links = Links(Network(1.0, jitter=1.0), 2)
    first = [links.send(0, number / 100, 1) for number in range(500)]
    assert first == sorted(first)
    both = [links.send(number % 2, 10 + number / 100, 1) for number in range(500)]
    assert both != sorted(both)


def test_the_usual_networks() -> None:
    assert Network.lan().seconds(0) == 1e-4
    assert Network.lan().seconds(1_250_000) == pytest.approx(1.1e-3)
    assert Network.wan().seconds(12_500_000) == pytest.approx(1.05)
    assert Network.lan().describe == "0.1 ms, 10 Gbit/s a worker, 10 Gbit/s at the servers"
    assert Network.wan().describe == "50 ms, 100 Mbit/s a worker, 1 Gbit/s at the servers, jitter 0.2"
    assert Network(latency_s=0.1).describe == "100 ms, unlimited a worker, unlimited at the servers"
    assert Network(jitter=0.5).describe == "instant"
    assert not any(one.instant for one in (Network(0.1), Network(0, 1e9), Network(0, math.inf, 1e9)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Network(latency_s=-1.0), "`latency_s` must be a number >= 0 and finite, got -1.0; 0.005"),
        (lambda: Network(latency_s=math.inf), "`latency_s` must be a number >= 0 and finite, got inf"),
        (lambda: Network(bandwidth_bytes_per_s=0.0), "`bandwidth_bytes_per_s` must be a number > 0, got 0.0"),
        (lambda: Network(shared_bytes_per_s=-5.0), "`shared_bytes_per_s` must be a number > 0, got -5.0"),
        (lambda: Network(shared_bytes_per_s=math.nan), "`shared_bytes_per_s` must be a number > 0, got nan"),
        (lambda: Network(jitter=-0.1), "`jitter` must be a number >= 0 and finite, got -0.1"),
        (lambda: parse_seconds("5"), "'5', without a unit: write 5ms or 5s"),
        (lambda: parse_seconds("5 lightyears"), "'5 lightyears'; the units are ns, us, ms, s, min, h"),
        (lambda: parse_seconds("-5ms"), "a time must be a number >= 0 and a unit, such as 5ms"),
        (lambda: parse_seconds("soon"), "got 'soon'"),
        (lambda: parse_seconds("1e999s"), "got '1e999s'"),
        (lambda: parse_rate("1Gbps"), "'1Gbps'; write 1Gbit/s for bits, 1GB/s for bytes"),
        (lambda: parse_rate("100mb"), "'100mb'; write 100Mbit/s for bits, 100MB/s for bytes"),
        (lambda: parse_rate("100"), "'100'; write 100bit/s for bits, 100B/s for bytes"),
        (lambda: parse_rate("0Mbit/s"), "for a link that carries nothing use faults such as lose(1.0)"),
        (lambda: parse_rate("fast"), "a rate must be a number > 0 with bit/s or B/s"),
        (lambda: parse_rate("1e999B/s"), "got '1e999B/s'"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5ms", 5e-3),
        (" 1.5 s ", 1.5),
        ("250us", 250e-6),
        ("3µs", 3e-6),
        ("2min", 120),
        ("0", 0.0),
        ("1e-3s", 1e-3),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1Gbit/s", 125e6),
        ("125MB/s", 125e6),
        ("8 bit/s", 1),
        ("1.5kB/s", 1500),
        ("2MiB/s", 2**21),
        ("1Tbit/s", 125e9),
    ],
)
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate
    assert parse_rate("unlimited") == math.inf

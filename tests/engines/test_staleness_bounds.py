"""Staleness under stale synchronous parallel: its bound holds, and it is the gate that holds it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from laws import network, train

import freewheel
from freewheel.engines import Engine
from freewheel.methods import Method
from freewheel.simulation import Network, ServerCost, constant, lognormal, pauses, slow

UNEQUAL: dict[str, Engine] = {
    "threads": freewheel.Threads(),
    "processes": freewheel.Processes(),
    "one fast": freewheel.Simulated(slow(constant(0.01), {0: 0.05})),
    "one slow, far away": freewheel.Simulated(
        slow(lognormal(0.01, 0.3), {1: 20.0}), Network(0.05, jitter=0.5)
    ),
    "narrow links": freewheel.Simulated(slow(lognormal(0.001, 1), {0: 20.0}), Network(0.02, 1e5, 1e6)),
    "busy server": freewheel.Simulated(
        slow(lognormal(0.01, 0.5), {1: 10.0}), Network(0.001), ServerCost(0.01, 0.001)
    ),
    "far away": freewheel.Simulated(slow(constant(0.01), {0: 1.5}), Network(0.03)),
    "pauses": freewheel.Simulated(pauses(constant(0.001), 0.1, 0.09)),
}


def furthest(method: Method, engine: Engine, workers: int, shards: int = 1) -> int:
    """The largest staleness of a run."""
    result = train(network(), method, engine, workers=workers, batch_size=8, shards=shards)
    return max(result.staleness)


def limit(workers: int, bound: int, in_flight: int = 0) -> int:
    """Between a pull and its push every other worker pushes at most 2 bound + 1 updates.

    Each push that is in flight may add one of the worker's own, and two of everybody else's: one that it
    has not seen, and one that they begin the earlier.
    """
    return (workers - 1) * (2 * bound + 1) + in_flight * (2 * workers - 1)


@pytest.mark.parametrize("case", UNEQUAL)
@pytest.mark.parametrize("bound", [0, 1, 3])
@pytest.mark.parametrize("workers", [2, 4])
def test_staleness_never_passes_the_bound(case: str, bound: int, workers: int) -> None:
    method = freewheel.stale_synchronous(bound, 0.05)
    assert furthest(method, UNEQUAL[case], workers) <= limit(workers, bound)


@pytest.mark.parametrize("case", UNEQUAL)
@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("bound", [0, 1])
def test_pushes_in_flight_add_to_the_bound(case: str, bound: int, in_flight: int) -> None:
    method = freewheel.stale_synchronous(bound, 0.05, in_flight=in_flight)
    assert furthest(method, UNEQUAL[case], 3) <= limit(3, bound, in_flight)


@pytest.mark.parametrize("case", [case for case in UNEQUAL if case not in ("threads", "processes")])
@pytest.mark.parametrize("in_flight", [0, 1, 2])
@pytest.mark.parametrize("bound", [0, 1])
def test_a_gate_that_is_asked_seldom_is_obeyed_as_one_that_is_always_asked(
    case: str, bound: int, in_flight: int
) -> None:
    method = freewheel.stale_synchronous(bound, 0.05, in_flight=in_flight)
    always = replace(method, gate=method.gate._replace(slowest=False))
    seldom, often = (
        train(network(), one, UNEQUAL[case], workers=3, batch_size=8, epochs=1) for one in (method, always)
    )
    assert seldom.history == often.history
    assert seldom.staleness == often.staleness


@pytest.mark.parametrize("case", [case for case in UNEQUAL if case not in ("threads", "processes")])
def test_the_bound_holds_for_every_shard(case: str) -> None:
    assert furthest(freewheel.stale_synchronous(1, 0.05), UNEQUAL[case], 4, shards=3) <= limit(4, 1)


@pytest.mark.parametrize("case", ["one fast", "one slow, far away", "busy server"])
def test_without_its_gate_staleness_passes_the_bound(case: str) -> None:
    method = freewheel.stale_synchronous(0, 0.05)
    held = furthest(method, UNEQUAL[case], 2)
    assert held <= limit(2, 0) < furthest(replace(method, gate=freewheel.free()), UNEQUAL[case], 2)


def test_the_bound_is_reached() -> None:
    """It is no larger than it must be."""
    method = freewheel.stale_synchronous(0, 0.05)
    assert furthest(method, UNEQUAL["busy server"], 4) == limit(4, 0)


def test_nobody_is_further_ahead_than_the_bound() -> None:
    """As seen in the order of the finished steps: bound + 1 with the one that has just finished."""
    for bound in (0, 2):
        done = [0, 0, 0, 0]
        result = train(
            network(),
            freewheel.stale_synchronous(bound, 0.05),
            freewheel.Simulated(slow(lognormal(0.01, 0.5), {3: 10.0})),
            workers=4,
            max_seconds=0.4,
            epochs=9,
        )
        done = [worker.steps for worker in result.workers]
        assert result.reason == "max_seconds"
        assert 0 < max(done) - min(done) <= bound + 1


def test_the_granularity_does_not_matter_to_the_bound() -> None:
    for granularity in ("model", "layer"):
        method = replace(
            freewheel.hogwild(0.05, granularity=granularity),
            gate=freewheel.bounded(1),
        )
        assert furthest(method, freewheel.Threads(), 4) <= limit(4, 1)

"""Every lease is computed once; every push is applied, absorbed, dropped with a reason, or still waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from laws import ALL, ENGINES, KINDS, LIVE, SAMPLES, adds_up, leases_of, most_shards, network, state, train

import freewheel
from freewheel.engines import simulated
from freewheel.events import Traffic
from freewheel.simulation import (
    Fault,
    FaultPlan,
    Network,
    ServerCost,
    corrupt,
    die,
    duplicate,
    hang,
    lognormal,
    lose,
    reorder,
    slow,
)

STEPS = 30  # of two epochs
UNEQUAL = slow(lognormal(0.01, 0.5), {1: 3.0})
BACK = die(1, 2, back_after_s=0.03)
FAULTS: dict[str, list[Fault]] = {
    "die": [die(1, 2), die(0, 3)],
    "die and return": [BACK, die(0, 1, back_after_s=0.2)],
    "hang": [hang(2, 1, 0.3)],
    "duplicate": [duplicate(0.5)],
    "reorder": [reorder(0.5, 0.05)],
    "lose": [lose(0.5)],
    "corrupt": [corrupt(0.3, 10.0)],
    "everything": [BACK, hang(2, 1, 0.1), corrupt(0.1), duplicate(0.3), reorder(0.3, 0.03), lose(0.1)],
}


def applied_at_once(method: str) -> bool:
    """Every step pushes, and every push is applied."""
    return method.startswith(("hogwild", "synchronous", "stale", "delay")) and not any(
        part in method for part in ("average", "expire", "median", "krum", "backup")
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ALL)
def test_every_lease_is_computed_once_and_the_ledger_adds_up(engine: str, method: str) -> None:
    leases: Counter[int] = Counter()
    result = train(network(), ALL[method], engine, workers=4, monitors=[leases_of(leases)])
    ledger = result.ledger
    assert leases == Counter(range(STEPS))
    assert result.samples == 2 * SAMPLES == sum(worker.samples for worker in result.workers)
    assert result.steps == STEPS == sum(worker.steps for worker in result.workers)
    assert adds_up(ledger)
    assert ledger["applied"] > 0
    assert ledger["duplicates"] == 0
    if applied_at_once(method):
        assert ledger["pushed"] == ledger["applied"] == STEPS
    if applied_at_once(method) and "in_flight" not in method:
        assert sum(result.staleness.values()) == STEPS


def faulty(
    method: str, faults: list[Fault], monitors: list[Any], network_too: bool = True, shards: int = 1
) -> freewheel.Result:
    live = method in LIVE and not ALL[method].rounds
    wire = Network(0.003, 1e6, 5e6, jitter=0.3) if network_too and not live else Network()
    engine = freewheel.Simulated(UNEQUAL, wire, ServerCost(1e-3, 5e-4), faults)
    return train(network(), ALL[method], engine, workers=4, monitors=monitors, shards=shards)


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind != "die"])
@pytest.mark.parametrize("method", KINDS)
def test_faults_lose_no_lease_and_the_ledger_adds_up(method: str, kind: str) -> None:
    leases: Counter[int] = Counter()
    result = faulty(method, FAULTS[kind], [leases_of(leases)], shards=3 if kind == "everything" else 1)
    assert leases == Counter(range(STEPS))
    assert result.steps == STEPS
    assert adds_up(result.ledger)
    if method != "parallel_sgd":  # which sends nothing until all stand still
        assert (result.ledger["duplicates"] > 0) == (kind in ("duplicate", "everything"))


@pytest.mark.parametrize("method", ALL)
def test_all_faults_at_once_lose_no_lease_and_the_ledger_adds_up(method: str) -> None:
    leases: Counter[int] = Counter()
    result = faulty(method, FAULTS["everything"], [leases_of(leases)], shards=most_shards(method))
    assert leases == Counter(range(STEPS))
    assert adds_up(result.ledger)


@pytest.mark.parametrize("kind", FAULTS)
def test_every_kind_of_fault_happens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the laws about them would say nothing."""
    plans: list[FaultPlan] = []

    def watched(faults: Any, seed: int) -> FaultPlan:
        plans.append(FaultPlan(faults, seed))
        return plans[-1]

    watched_plan: Any = lambda faults, seed=0: watched(faults, seed)  # noqa: E731
    monkeypatch.setattr(simulated, "FaultPlan", watched_plan)
    faulty("hogwild", FAULTS[kind], [])
    fired = sum((plan.fired for plan in plans), Counter[str]())
    assert set(fired) == {type(fault).__name__.lower() for fault in FAULTS[kind]}


@pytest.mark.parametrize("method", [name for name in KINDS if name != "synchronous"])
def test_the_lease_of_a_worker_that_dies_is_computed_by_another(method: str) -> None:
    leases: Counter[int] = Counter()
    result = faulty(method, FAULTS["die"], [leases_of(leases)])
    assert leases == Counter(range(STEPS))
    assert [result.workers[worker].steps for worker in (0, 1)] == [3, 2]


def test_a_worker_that_returns_goes_on() -> None:
    alone, both = (
        faulty("hogwild", [die(1, 2, back_after_s=back)], [], network_too=False) for back in (1e6, 0.01)
    )
    assert alone.workers[1].steps == 2
    assert both.workers[1].steps > 2


def test_a_lost_push_is_in_the_book_but_not_in_the_weights() -> None:
    for method, pushes in (("hogwild", STEPS), ("stale_synchronous", STEPS)):
        result = faulty(method, [lose(1.0)], [])
        assert (result.steps, result.ledger["applied"]) == (pushes, 0)
        assert result.ledger["dropped"] == {"lost": pushes}
        traffic = next(event for event in result.events if isinstance(event, Traffic))
        assert traffic.faults == {"lose": pushes}
        before = network()
        assert torch.equal(state(result.module)[:160], state(before)[:160])


def test_reordered_pushes_are_applied_all_the_same() -> None:
    for method in ("stale_synchronous", "delay_compensated", "hogwild"):
        result = faulty(method, [reorder(0.5, 0.05)], [])
        assert result.ledger["applied"] == STEPS

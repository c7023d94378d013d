"""Gates: who may start, as laws over all states of progress."""

from __future__ import annotations

import itertools

import pytest

from freewheel.errors import ConfigurationError
from freewheel.gates import NEVER_WAITED_FOR, Gate, barrier, bounded, free, warm_start

GATES = [free(), barrier(), bounded(0), bounded(1), bounded(3)]
WARM = [warm_start(steps, gate) for steps in (0, 1, 3) for gate in GATES]
STATES = list(itertools.product((0, 1, 2, 5, NEVER_WAITED_FOR), repeat=3))


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.describe)
def test_somebody_may_always_start(gate: Gate) -> None:
    for progress in STATES:
        if min(progress) < NEVER_WAITED_FOR:
            assert gate.may_start(progress.index(min(progress)), progress), progress


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_bounded_keeps_every_worker_within_its_bound_of_the_slowest(bound: int) -> None:
    gate, progress = bounded(bound), [0, 0, 0]
    for worker in (0, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 1, 1, 2, 2, 0) * 5:
        if gate.may_start(worker, progress):
            progress[worker] += 1
        assert max(progress) - min(progress) <= bound + 1
    assert min(progress) > 0


def test_barrier_is_bounded_by_nothing() -> None:
    for progress in STATES:
        for worker in range(3):
            assert barrier().may_start(worker, progress) == bounded(0).may_start(worker, progress)


def test_free_always_lets_start_and_says_so() -> None:
    assert all(free().may_start(worker, progress) for progress in STATES for worker in range(3))
    assert [gate.open for gate in GATES] == [True, False, False, False, False]


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.describe)
def test_nobody_waits_for_a_worker_that_has_retired(gate: Gate) -> None:
    assert gate.may_start(0, [7, NEVER_WAITED_FOR, NEVER_WAITED_FOR])


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`bound` must be a whole number >= 0, got -1; use free\(\)"
    ):
        bounded(-1)


@pytest.mark.parametrize("gate", WARM, ids=lambda gate: gate.describe)
def test_somebody_may_start_while_the_first_worker_is_active(gate: Gate) -> None:
    """Before its steps are done the first one, if nobody is behind it; afterwards whoever the gate lets."""
    for progress in STATES:
        if progress[0] == min(progress):
            assert gate.may_start(0, progress), progress


def test_a_warm_start_is_of_the_first_worker_alone() -> None:
    gate = warm_start(2, free())
    for progress in STATES:
        assert gate.may_start(0, progress)
        for worker in (1, 2):
            assert gate.may_start(worker, progress) == (progress[0] >= 2)


def test_after_a_warm_start_the_gate_within_holds() -> None:
    for inner in GATES:
        for progress in STATES:
            if progress[0] >= 3:
                for worker in range(3):
                    both = (gate.may_start(worker, progress) for gate in (warm_start(3, inner), inner))
                    assert next(both) == next(both)


def test_nobody_waits_for_the_first_worker_once_it_has_retired() -> None:
    assert warm_start(100, free()).may_start(1, [NEVER_WAITED_FOR, 0, 0])


def test_a_warm_start_says_what_it_is_and_has_engines_ask() -> None:
    gate = warm_start(3, bounded(1))
    assert (gate.describe, gate.open, gate.slowest) == ("warm_start(3) > bounded(1)", False, False)


def test_a_negative_warm_start_is_refused() -> None:
    with pytest.raises(
        ConfigurationError,
        match="`warm_start` must be a whole number of steps >= 0, got -1; 0 lets all begin",
    ):
        warm_start(-1, free())

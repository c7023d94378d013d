"""Gates: who may start, as laws over all states of progress."""

from __future__ import annotations

import itertools

import pytest

from freewheel.errors import ConfigurationError
from freewheel.gates import NEVER_WAITED_FOR, Gate, barrier, bounded, free

GATES = [free(), barrier(), bounded(0), bounded(1), bounded(3)]
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
    with pytest.raises(ConfigurationError, match=r"`bound` must be >= 0, got -1; use free\(\)"):
        bounded(-1)

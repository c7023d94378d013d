"""Faults: who is hit, how often, and what is left of a gradient."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from freewheel.errors import ConfigurationError
from freewheel.simulation import (
    Fate,
    Fault,
    FaultPlan,
    corrupt,
    die,
    duplicate,
    hang,
    lose,
    reorder,
    replace_by_noise,
)
from freewheel.simulation.draws import BLOCK

SHARES: list[Fault] = [corrupt(0.1), duplicate(0.2), reorder(0.3, delay_s=2.0), lose(0.05)]


def wrong(value: Any) -> Any:
    """A value of a type that the signature forbids."""
    return value


def fates(plan: FaultPlan, workers: int = 4, pushes: int = 700) -> list[list[Fate]]:
    return [[plan.push(worker, number) for number in range(pushes)] for worker in range(workers)]


def test_a_plan_of_nothing_does_nothing() -> None:
    plan = FaultPlan()
    assert (bool(plan), plan.step(0, 0), plan.push(0, 0), plan.describe) == (False, None, Fate(), "none")
    assert not FaultPlan([lose(0.0)])
    assert not plan.fired


def test_what_happens_depends_on_seed_worker_and_number_alone() -> None:
    wanted = fates(FaultPlan(SHARES, seed=3))
    plan = FaultPlan(SHARES, seed=3)
    again = {(w, n): plan.push(w, n) for n in reversed(range(700)) for w in (2, 0, 3, 1)}
    assert [[again[w, n] for n in range(700)] for w in range(4)] == wanted
    assert fates(FaultPlan(SHARES, seed=4)) != wanted
    assert len({tuple(one) for one in wanted}) == 4


def test_what_happens_does_not_repeat_itself() -> None:
    own = [plan.push(0, number).lost for plan in [FaultPlan([lose(0.5)])] for number in range(4 * BLOCK)]
    blocks = {tuple(own[start : start + BLOCK]) for start in range(0, 4 * BLOCK, BLOCK)}
    assert len(blocks) == 4


def test_each_kind_of_fault_happens_in_its_share_and_is_counted() -> None:
    plan = FaultPlan(SHARES, seed=0)
    every = [fate for own in fates(plan, workers=20, pushes=1000) for fate in own]
    arrived = [fate for fate in every if not fate.lost]
    counts = Counter(lose=len(every) - len(arrived))
    counts["corrupt"] = sum(fate.noise == 100.0 for fate in arrived)
    counts["duplicate"] = sum(fate.copies == 2 for fate in arrived)
    counts["reorder"] = sum(fate.delay_s == 2.0 for fate in arrived)
    assert plan.fired == counts
    for name, share in (("lose", 0.05), ("corrupt", 0.095), ("duplicate", 0.19), ("reorder", 0.285)):
        spread = math.sqrt(share * (1 - share) * len(every))
        assert counts[name] == pytest.approx(share * len(every), abs=4 * spread)
    both = sum(fate.noise > 0 and fate.copies > 1 for fate in arrived)  # faults are independent of each other
    assert both == pytest.approx(0.1 * 0.2 * len(arrived), abs=4 * math.sqrt(0.02 * len(arrived)))


def test_a_share_of_one_hits_every_push_and_of_nought_none() -> None:
    assert {fate for own in fates(FaultPlan([lose(1.0)])) for fate in own} == {Fate(lost=True)}
    assert {fate for own in fates(FaultPlan([lose(0.0), duplicate(1.0)])) for fate in own} == {Fate(copies=2)}


def test_only_the_workers_named_are_corrupted() -> None:
    plan = FaultPlan([corrupt(1.0, scale=7.0, workers=[1, 3])])
    assert [plan.push(worker, 0).noise for worker in range(5)] == [0.0, 7.0, 0.0, 7.0, 0.0]
    assert plan.fired == {"corrupt": 2}


def test_a_step_fault_happens_once_at_its_worker_and_step() -> None:
    plan = FaultPlan([die(1, 2, back_after_s=5.0), hang(1, 3, 4.0), hang(0, 2, 1.0)])
    happened = {(w, s): plan.step(w, s) for w in range(3) for s in range(5)}
    assert {key: fault for key, fault in happened.items() if fault is not None} == {
        (1, 2): die(1, 2, back_after_s=5.0),
        (1, 3): hang(1, 3, 4.0),
        (0, 2): hang(0, 2, 1.0),
    }
    assert plan.step(1, 2) is None  # it came back, and begins the step again
    assert plan.fired == {"die": 1, "hang": 2}


def test_a_plan_says_whom_it_names_and_what_it_holds() -> None:
    plan = FaultPlan([die(1, 2), hang(9, 3, 4.0), corrupt(0.1, workers=[4, 2]), lose(0.1), duplicate(0.2)])
    assert plan.named == {1, 2, 4, 9}
    assert plan.describe == "die(1, 2), hang(9, 3, 4), corrupt(0.1, 100, 2 workers), lose(0.1), 1 more"
    plan.step(1, 2)
    assert plan.named == {1, 2, 4, 9}
    assert [fault.describe for fault in (die(0, 1, 2.0), reorder(0.1, 2.0))] == [
        "die(0, 1, back_after_s=2)",
        "reorder(0.1, 2)",
    ]


def gradients() -> list[torch.Tensor | None]:
    return [torch.full((300, 20), 0.01), None, torch.arange(50.0), torch.zeros(30, 2, dtype=torch.float64)]


def flat(tensors: list[torch.Tensor | None]) -> torch.Tensor:
    return torch.cat([one.double().flatten() for one in tensors if one is not None])


def test_noise_has_so_many_times_the_norm_and_no_direction_in_common() -> None:
    before, after = gradients(), gradients()
    replace_by_noise(after, 100.0, torch.Generator().manual_seed(1))
    assert float(flat(after).norm()) == pytest.approx(100 * float(flat(before).norm()), rel=1e-5)
    old, new = flat(before), flat(after)
    assert abs(float(old @ new / (old.norm() * new.norm()))) < 4 / math.sqrt(old.numel())
    per_tensor = [float(one.double().square().mean()) for one in after if one is not None]
    assert max(per_tensor) < 3 * min(per_tensor)  # spread over all of them alike


def test_noise_is_written_in_place_and_depends_on_the_push_alone() -> None:
    plan = FaultPlan([corrupt(1.0)], seed=2)
    torch.manual_seed(5)
    expected = torch.random.get_rng_state()
    made = []
    for worker, number in ((0, 0), (0, 0), (0, 1), (1, 0)):
        own = gradients()
        kept = own[0]
        plan.corrupt(own, worker, number, noise=2.0)
        assert own[0] is kept
        assert own[1] is None
        made.append(flat(own))
    assert torch.equal(made[0], made[1])
    assert not any(torch.equal(made[0], other) for other in made[2:])
    assert torch.equal(torch.random.get_rng_state(), expected)  # the run's own generator was left alone


def test_a_gradient_of_zeros_or_of_nothing_has_no_noise() -> None:
    zeros: list[torch.Tensor | None] = [torch.zeros(5)]
    replace_by_noise(zeros, 100.0)
    assert zeros[0] is not None
    assert zeros[0].tolist() == [0.0] * 5
    replace_by_noise([None, None], 100.0)
    FaultPlan().corrupt([None], 0, 0, noise=1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: die(-1, 0), "`worker` must be a whole number >= 0, got -1; workers count from 0"),
        (
            lambda: die(0, wrong(1.5)),
            "`step` must be a whole number >= 0, got 1.5; the steps of a worker count from 0",
        ),
        (lambda: die(True, 0), "`worker` must be a whole number >= 0, got True"),
        (lambda: die(0, 0, -1.0), "`back_after_s` must be a number >= 0 and finite, got -1.0; leave it out"),
        (lambda: hang(0, 0, 0.0), "`for_s` must be a number > 0 and finite, got 0.0; use die()"),
        (lambda: hang(0, -1, 1.0), "`step` must be a whole number >= 0, got -1"),
        (lambda: hang(0, 0, math.inf), "use die() for a worker that hangs for ever"),
        (lambda: corrupt(1.1), "`share` must be a share from 0 to 1, got 1.1; 0.1 means 10 %"),
        (lambda: corrupt(0.1, scale=0.0), "`scale` must be a number > 0 and finite, got 0.0"),
        (lambda: corrupt(0.1, workers=[]), "`workers` names none; leave it out"),
        (lambda: duplicate(-0.1), "`share` must be a share from 0 to 1, got -0.1"),
        (lambda: lose(math.nan), "`share` must be a share from 0 to 1, got nan"),
        (lambda: reorder(0.1, 0.0), "`delay_s` must be a number > 0 and finite, got 0.0"),
        (lambda: reorder(wrong("10%"), 1.0), "`share` must be a share from 0 to 1, got '10%'"),
        (
            lambda: FaultPlan([die(0, 3), hang(0, 3, 1.0)]),
            "two for worker 0 in step 3: die(0, 3) and hang(0, 3, 1)",
        ),
        (lambda: FaultPlan([die(0, 3), die(0, 3)]), "two for worker 0 in step 3"),
        (
            lambda: FaultPlan([wrong("die")]),
            "`faults` may hold die(), hang(), corrupt(), duplicate(), reorder() and",
        ),
        (lambda: FaultPlan([lose(0.5)], seed=-1), "`seed` must be >= 0"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()

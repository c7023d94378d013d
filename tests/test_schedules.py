from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from freewheel import schedules
from freewheel.errors import ConfigurationError
from freewheel.schedules import Schedule, constant, cosine, linear, resolve, step, warmup

EPOCHS, OF_EPOCH = 12, 100
Twin = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def ramp(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(optimizer, start_factor=0.25, total_iters=4)


def chained(optimizer: torch.optim.Optimizer) -> Any:
    parts = [ramp(optimizer), lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


TWINS: list[tuple[Schedule, Twin]] = [
    (constant(0.3), functools.partial(lr_scheduler.ConstantLR, factor=1.0)),
    (step(0.3, 5 * OF_EPOCH, 0.5), functools.partial(lr_scheduler.StepLR, step_size=5, gamma=0.5)),
    (cosine(0.3, EPOCHS * OF_EPOCH), functools.partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS)),
    (
        cosine(0.3, EPOCHS * OF_EPOCH, final=0.03),
        functools.partial(lr_scheduler.CosineAnnealingLR, T_max=EPOCHS, eta_min=0.03),
    ),
    (
        linear(0.3, 10 * OF_EPOCH, final=0.03),
        functools.partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.1, total_iters=10),
    ),
    (warmup(0.3, 4 * OF_EPOCH, start=0.25), ramp),
    (warmup(step(0.3, 5 * OF_EPOCH, 0.5), 4 * OF_EPOCH, start=0.25), chained),
]
plans = pytest.mark.parametrize("schedule", [schedule for schedule, _ in TWINS], ids=repr)


@pytest.mark.parametrize(("schedule", "twin"), TWINS, ids=[repr(schedule) for schedule, _ in TWINS])
def test_schedules_equal_their_twins_in_torch(schedule: Schedule, twin: Twin) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = twin(optimizer)
    for epoch in range(EPOCHS + 1):
        assert schedule(epoch * OF_EPOCH) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-15
        )
        optimizer.step()
        scheduler.step()


@plans
def test_the_representation_is_the_call_that_makes_it(schedule: Schedule) -> None:
    assert eval(repr(schedule), vars(schedules).copy()) == schedule


@plans
def test_schedules_are_pickled_compared_and_hashed_by_value(schedule: Schedule) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert [again == other for other, _ in TWINS].count(True) == 1


@plans
def test_rates_are_finite_for_ever(schedule: Schedule) -> None:
    rates = [schedule(samples) for samples in (0, 1, 999, 10**6, 10**15)]
    assert all(0 <= rate <= 0.3 and math.isfinite(rate) for rate in rates)


def test_what_follows_the_end_stays_at_the_final_rate() -> None:
    for schedule in (cosine(1.0, 100, final=0.25), linear(1.0, 100, final=0.25)):
        assert [schedule(samples) for samples in (100, 101, 10**9)] == [0.25] * 3


PLANNED = 6_000
OPEN: list[tuple[Schedule, Schedule]] = [
    (cosine(0.1), cosine(0.1, PLANNED)),
    (linear(0.1, final=0.01), linear(0.1, PLANNED, final=0.01)),
    (step(0.1, 0.25), step(0.1, 1_500)),
    (warmup(0.1, 0.1), warmup(0.1, 600)),
    (warmup(cosine(0.1), 0.1), warmup(cosine(0.1, PLANNED), 600)),
    (warmup(warmup(linear(0.1), 300), 0.5), warmup(warmup(linear(0.1, PLANNED), 300), 3_000)),
    (warmup(cosine(0.1), 1e-9), warmup(cosine(0.1, PLANNED), 1)),
]


@pytest.mark.parametrize(("schedule", "complete"), OPEN, ids=[repr(schedule) for schedule, _ in OPEN])
def test_a_share_of_the_run_is_worked_out_alike_in_advance_and_at_each_call(
    schedule: Schedule, complete: Schedule
) -> None:
    assert resolve(schedule, PLANNED) == complete
    for samples in (0, 1, 599, 1_500, 5_999, 6_000, 9_000):
        assert schedule(samples, PLANNED) == complete(samples) == complete(samples, 17)


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in OPEN], ids=repr)
def test_a_share_of_a_run_without_a_plan_is_refused_with_a_remedy(schedule: Schedule) -> None:
    with pytest.raises(ConfigurationError, match="give the run `epochs` or `max_samples`"):
        schedule(0)
    with pytest.raises(ConfigurationError, match="no planned number of samples"):
        resolve(schedule, None)


@plans
def test_complete_schedules_need_no_plan(schedule: Schedule) -> None:
    assert resolve(schedule, None) == schedule
    assert resolve(schedule, 7) == schedule


def halving(samples: int) -> float:
    return float(0.5 ** (samples // 100))


class Doubling:
    def __call__(self, samples: int) -> float:
        return 0.1 * 2.0**samples


def test_functions_of_the_samples_serve_as_schedules() -> None:
    own = schedules.as_schedule(halving)
    assert [own(samples, 1_000) for samples in (0, 100, 200)] == [1.0, 0.5, 0.25]
    assert warmup(halving, 200)(100) == 0.25
    assert resolve(warmup(halving, 0.2), 1_000) == warmup(halving, 200)
    assert resolve(halving, None) is halving
    assert pickle.loads(pickle.dumps(own)) == own


def test_functions_are_named_without_their_address() -> None:
    assert repr(schedules.as_schedule(halving)) == "halving"
    assert repr(schedules.as_schedule(lambda samples: 0.1)) == "<lambda>"
    assert repr(schedules.as_schedule(Doubling())) == "Doubling"


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, None, "fast"])
def test_a_function_that_returns_no_rate_is_named(value: Any) -> None:
    own = schedules.as_schedule(lambda samples: value)
    with pytest.raises(ConfigurationError, match=r"`lr\(640\)` must be a number >= 0"):
        own(640)


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    assert repr(constant(np.float32(0.5))) == "constant(lr=0.5)"  # type: ignore[arg-type]
    assert repr(cosine(1, np.int64(100))) == "cosine(lr=1.0, total=100, final=0.0)"  # type: ignore[arg-type]
    assert repr(step(1, 6e4)) == "step(lr=1.0, every=60000, factor=0.1)"


def wrong(value: object) -> Any:
    """Hides a wrong type from the type checker."""
    return value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-1), r"`lr` must be a number >= 0 and finite, got -1"),
        (lambda: constant(math.nan), r"`lr` .* got nan"),
        (lambda: constant(wrong("0.1")), r"`lr` .* got '0\.1'"),
        (
            lambda: schedules.as_schedule(wrong(None)),
            r"`lr` .* got None; give a float.* or a schedule",
        ),
        (lambda: step(0.1, 0), r"`every` must be a whole number of samples >= 1, or a share.* got 0"),
        (lambda: step(0.1, 1.5), r"`every` .* got 1\.5"),
        (lambda: step(0.1, math.inf), r"`every` .* got inf"),
        (lambda: step(0.1, True), r"`every` .* got True"),
        (lambda: step(0.1, 10, factor=-1), r"`factor` .* got -1; 0\.1 divides"),
        (lambda: cosine(0.1, 0), r"`total` must be a whole number .* got 0; leave it out for the whole run"),
        (lambda: cosine(0.1, wrong(0.5)), r"`total` .* got 0\.5"),
        (lambda: cosine(-0.1), r"`lr`"),
        (lambda: cosine(0.1, final=-0.1), r"`final`"),
        (lambda: linear(0.1, wrong(math.nan)), r"`total` .* got nan"),
        (lambda: linear(-0.1), r"`lr`"),
        (lambda: linear(0.1, final=math.inf), r"`final`"),
        (lambda: warmup(0.1, -5), r"`samples` .* got -5"),
        (lambda: warmup(0.1, 5, start=1.1), r"`start` must be a number >= 0 and <= 1, got 1\.1"),
        (lambda: warmup(wrong("slow"), 5), r"`schedule` .* got 'slow'"),
    ],
)
def test_arguments_of_schedules_are_checked(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_the_base_is_no_schedule_itself() -> None:
    with pytest.raises(NotImplementedError):
        Schedule()(0)

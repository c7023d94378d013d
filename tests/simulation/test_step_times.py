"""Computing times: closed forms, determinism, and refusals."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from freewheel.errors import ConfigurationError, DataError
from freewheel.events import Event, RunStarted, Steps
from freewheel.monitors import recorder
from freewheel.simulation import (
    StepTimes,
    as_times,
    check_workers,
    constant,
    from_trace,
    lognormal,
    measured,
    pauses,
    per_worker,
    slow,
)
from freewheel.simulation.draws import BLOCK

MODELS = [
    constant(0.5),
    lognormal(0.5, 0.4),
    measured([0.1, 0.2, 0.7]),
    per_worker({0: constant(1.0), 1: lognormal(1.0, 0.1)}, lognormal(0.2, 0.5)),
    slow(lognormal(0.5, 0.4), {1: 4.0}),
    pauses(lognormal(0.5, 0.4), every_s=5.0, for_s=1.0),
]
RANDOM = [model for model in MODELS if model != constant(0.5)]


def wrong(value: Any) -> Any:
    """A value of a type that the signature forbids."""
    return value


def drawn(model: StepTimes, seed: int, worker: int, steps: int) -> list[float]:
    """The first steps of a worker, one right after the other."""
    draw, now, found = model.sampler(seed, worker), 0.0, []
    for _ in range(steps):
        found.append(draw(now))
        now += found[-1]
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.describe)
def test_the_same_seed_and_worker_draw_the_same(model: StepTimes) -> None:
    assert drawn(model, 7, 2, 3 * BLOCK) == drawn(model, 7, 2, 3 * BLOCK)
    assert all(seconds > 0 and type(seconds) is float for seconds in drawn(model, 7, 2, 50))


@pytest.mark.parametrize("model", RANDOM, ids=lambda model: model.describe)
def test_seeds_and_workers_share_no_draws(model: StepTimes) -> None:
    runs = [tuple(drawn(model, seed, worker, 60)) for seed in (0, 1) for worker in (3, 4)]
    assert len(set(runs)) == 4


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.describe)
def test_draws_do_not_depend_on_the_order_in_which_workers_draw(model: StepTimes) -> None:
    alone = [drawn(model, 0, worker, 2 * BLOCK) for worker in range(3)]
    draws, now = [model.sampler(0, worker) for worker in range(3)], [0.0] * 3
    together: list[list[float]] = [[], [], []]
    for turn in range(6 * BLOCK):
        worker = (turn * turn + turn // 7) % 3
        if len(together[worker]) < 2 * BLOCK:
            together[worker].append(draws[worker](now[worker]))
            now[worker] += together[worker][-1]
    for mine, own in zip(together, alone, strict=True):
        assert len(mine) > BLOCK / 2
        assert mine == own[: len(mine)]


def test_lognormal_has_its_median_mean_and_spread() -> None:
    seconds = drawn(lognormal(0.2, 0.5), 1, 0, 40_000)
    logs = [math.log(one) for one in seconds]
    error = 0.5 / math.sqrt(len(seconds))
    assert statistics.fmean(logs) == pytest.approx(math.log(0.2), abs=4 * error)
    assert statistics.stdev(logs) == pytest.approx(0.5, abs=4 * error)
    assert statistics.fmean(seconds) == pytest.approx(0.2 * math.exp(0.125), rel=4 * error * 1.1)


def test_lognormal_without_spread_is_constant() -> None:
    assert set(drawn(lognormal(0.25, 0.0), 0, 0, 600)) == {0.25}


def test_measured_draws_every_sample_equally_often() -> None:
    samples = [0.1, 0.2, 0.3, 0.4]
    seconds = drawn(measured(samples), 0, 0, 8000)
    for one in samples:  # binomial, standard deviation 39
        assert seconds.count(one) == pytest.approx(2000, abs=4 * 39)


def test_measured_describes_itself_in_a_line() -> None:
    assert measured([0.1, 0.3, 0.2] * 500).describe == "measured(1500 samples, median 0.2)"


def test_slow_multiplies_the_very_draws_of_the_model() -> None:
    model = lognormal(0.5, 0.4)
    fleet = slow(model, {1: 4.0, 2: 0.5})
    for worker, factor in ((0, 1.0), (1, 4.0), (2, 0.5)):
        assert drawn(fleet, 3, worker, 600) == [factor * one for one in drawn(model, 3, worker, 600)]


def test_a_worker_of_its_own_draws_from_its_model() -> None:
    fleet = per_worker({1: constant(9.0)}, lognormal(0.5, 0.4))
    assert drawn(fleet, 0, 1, 3) == [9.0] * 3
    assert drawn(fleet, 0, 2, 9) == drawn(lognormal(0.5, 0.4), 0, 2, 9)


def first_pause(model: StepTimes, every: float, length: float) -> float:
    """When a worker's pause begins, found from outside: a step that fits in no pause takes its own time."""
    tiny = every / 1000
    draw = model.sampler(0, 0)
    free = next(now * tiny for now in range(3000) if draw(now * tiny) < tiny * 1.5)
    low, high = free, free + every - length
    for _ in range(60):  # the pause begins at the first time from which a tiny step waits for the whole of it
        middle = (low + high) / 2
        low, high = (low, middle) if draw(middle) >= length else (middle, high)
    return high


def test_a_step_in_a_pause_waits_for_its_end() -> None:
    every, length, tiny = 10.0, 2.0, 0.01
    short, long = (pauses(constant(work), every, length) for work in (tiny, 20.0))
    begins = first_pause(short, every, length) + tiny  # a step that ends at the pause is not held up
    draw = short.sampler(0, 0)
    assert draw(begins + 0.5) == pytest.approx(1.5 + tiny)
    assert draw(begins + 1.999) == pytest.approx(0.001 + tiny)
    assert draw(begins + 2.5) == pytest.approx(tiny)
    assert draw(begins - tiny / 2) == pytest.approx(length + tiny)
    assert draw(begins + 7 * every + 0.5) == pytest.approx(1.5 + tiny)
    # 20 s of work beside pauses: 8 + 8 + 4 after the pause, and two more pauses in between
    assert long.sampler(0, 0)(begins + 2.0) == pytest.approx(24.0)
    assert long.sampler(0, 0)(begins) == pytest.approx(26.0)
    assert long.sampler(0, 0)(begins + 6.0) == pytest.approx(24.0)
    assert long.sampler(0, 0)(begins + 6.5) == pytest.approx(26.0)


@pytest.mark.parametrize(("every", "length", "work"), [(10.0, 2.0, 1.0), (3.0, 1.0, 5.0), (1.0, 0.25, 0.1)])
def test_pauses_take_their_share_of_the_time(every: float, length: float, work: float) -> None:
    steps = 3000
    total = sum(drawn(pauses(constant(work), every, length), 5, 1, steps))
    assert total == pytest.approx(steps * work / (1 - length / every), abs=every)


def test_how_work_is_cut_into_steps_does_not_matter_to_pauses() -> None:
    fine, coarse = (drawn(pauses(constant(work), 7.0, 3.0), 2, 4, int(60 / work)) for work in (0.5, 3.0))
    assert sum(fine) == pytest.approx(sum(coarse), abs=3.0 + 1e-6)


def test_workers_pause_at_different_times_and_others_not_at_all() -> None:
    model = pauses(constant(0.01), every_s=1.0, for_s=0.5, workers=[0, 1, 2])
    at = [model.sampler(0, worker)(10.0) for worker in range(5)]
    assert at[3:] == [0.01, 0.01]
    waits = [tuple(model.sampler(0, w)(now / 10) > 0.02 for now in range(10)) for w in range(3)]
    assert len(set(waits)) > 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(0.0), "`seconds` must be a number > 0 and finite, got 0.0; 0.01 is 10 ms"),
        (lambda: constant(math.inf), "`seconds` must be a number > 0 and finite, got inf"),
        (lambda: constant(wrong("1")), "`seconds` must be a number > 0 and finite, got '1'"),
        (lambda: constant(True), "got True"),
        (lambda: lognormal(-1.0, 0.1), "`median_s` must be a number > 0 and finite, got -1.0"),
        (lambda: lognormal(1.0, -0.1), "`sigma` must be a number >= 0 and finite, got -0.1"),
        (lambda: lognormal(1.0, math.nan), "`sigma` must be a number >= 0 and finite, got nan"),
        (lambda: measured([]), "`samples` must hold at least one measured time, got none"),
        (lambda: measured([0.1, math.nan]), "`samples` must be a number > 0 and finite, got nan"),
        (lambda: measured(wrong(0.1)), "`samples` must be a list of numbers, got 0.1; put it into brackets"),
        (lambda: per_worker({-1: constant(1.0)}, constant(1.0)), "`models` must be a whole number >= 0"),
        (lambda: per_worker({0: wrong("fast")}, constant(1.0)), "`models` must be a model of computing time"),
        (lambda: per_worker({}, wrong(None)), "`default` must be a model of computing time"),
        (lambda: slow(constant(1.0), {}), "`factors` names no worker; give for instance {0: 4.0}"),
        (lambda: slow(constant(1.0), {0: 0.0}), "`factors` must be a number > 0 and finite, got 0.0; 4.0"),
        (lambda: slow(constant(1.0), {wrong(0.5): 2.0}), "`factors` must be a whole number >= 0, got 0.5"),
        (lambda: slow(wrong(min), {0: 2.0}), "`model` must be a model of computing time"),
        (lambda: pauses(constant(1.0), 2.0, 2.0), "`for_s` must be less than `every_s`, got 2 and 2"),
        (lambda: pauses(constant(1.0), 2.0, 0.0), "`for_s` must be a number > 0 and finite, got 0.0"),
        (lambda: pauses(constant(1.0), 2.0, 1.0, []), "`workers` names none; leave it out for all of them"),
        (lambda: pauses(constant(1.0), 2.0, 1.0, wrong(3)), "`workers` must be a list of numbers, got 3"),
        (lambda: pauses(constant(1.0), 2.0, 1.0, [-2]), "`workers` must be a whole number >= 0, got -2"),
        (lambda: as_times(None), "`times` must be a model of computing time such as constant(0.01)"),
        (lambda: lognormal(1.0, 0.1).sampler(-1, 0), "`seed` must be >= 0 for a simulation, got -1"),
    ],
)
def test_nonsense_is_refused_with_a_remedy(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make()


def test_a_number_stands_for_a_constant_wherever_a_model_is_wanted() -> None:
    fleet = per_worker({0: 0.5}, slow(pauses(2, 9.0, 1.0, [5]), {3: 2}))  # type: ignore[dict-item, arg-type]
    assert fleet == per_worker({0: constant(0.5)}, slow(pauses(constant(2.0), 9.0, 1.0, [5]), {3: 2.0}))


def test_a_worker_that_the_run_does_not_have_is_noticed() -> None:
    fleet = per_worker({0: constant(0.5)}, slow(pauses(constant(2.0), 9.0, 1.0, [5]), {8: 2.0}))
    assert fleet.named == {0, 5, 8}
    check_workers("times", fleet.named, 9)
    check_workers("times", [], 1)
    with pytest.raises(
        ConfigurationError, match="`times` names worker 8, but there are 8, numbered from 0 to 7"
    ):
        check_workers("times", fleet.named, 8)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.describe)
def test_models_are_values(model: StepTimes) -> None:
    assert hash(model) == hash(model)
    assert 5 < len(model.describe) < 90


def test_the_description_stays_short_with_a_thousand_workers() -> None:
    fleet = per_worker({w: slow(constant(0.1), {w: 2.0}) for w in range(1000)}, measured([0.1] * 1000))
    assert fleet.describe == "per_worker(1000 of their own, default measured(1000 samples, median 0.1))"
    many = slow(constant(0.1), dict.fromkeys(range(250), 4.0))
    assert many.describe == "slow(constant(0.1), 250 of them up to 4 times)"


def steps(worker: Sequence[int], sequence: Sequence[int], seconds: Sequence[float]) -> Steps:
    size = len(worker)
    return Steps(
        list(worker), list(sequence), [0] * size, [1] * size, [0.5] * size, [0] * size, list(seconds)
    )


START = RunStarted("hogwild", "threads", 3, 16, 0, 1000, None, 10, None)
TRACE: list[Event] = [
    START,
    steps([0, 1, 0], [0, 0, 1], [1.0, 1.5, 2.0]),
    steps([0, 1, 2], [2, 1, 0], [3.5, 4.5, 5.0]),  # worker 2 has one step only
    steps([1, 1, 0], [3, 4, 3], [9.0, 9.25, 9.5]),  # worker 1's step 2 is missing
]


def test_a_trace_gives_each_worker_the_differences_of_its_own_consecutive_steps() -> None:
    model = from_trace(TRACE)
    assert dict(model.models) == {0: measured([1.0, 1.5, 6.0]), 1: measured([3.0, 0.25])}
    assert model.default == measured([1.0, 1.5, 6.0, 3.0, 0.25])
    assert set(drawn(model, 0, 1, 50)) == {3.0, 0.25}


def test_a_trace_may_be_a_file_or_its_folder(tmp_path: Path) -> None:
    record = recorder(tmp_path / "events.jsonl", steps=True)
    for event in [*TRACE[1:], START]:  # steps wait for an event of another kind
        record(event)
    assert from_trace(tmp_path) == from_trace(str(tmp_path / "events.jsonl")) == from_trace(TRACE)


def test_a_trace_without_steps_says_how_to_record_them(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no two consecutive steps .*\[recorder\('events.jsonl', steps=True\)"
    ):
        from_trace([START, steps([0, 1], [0, 0], [1.0, 2.0])])
    with pytest.raises(DataError, match=r"cannot read the trace .*events\.jsonl: No such file"):
        from_trace(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"event": "Nothing"}\n{}\n')
    with pytest.raises(DataError, match=r"is damaged, or no record of a run: .*unknown event 'Nothing'"):
        from_trace(tmp_path)


def test_measured_in_order_goes_round_and_round_from_a_place_that_the_seed_gives() -> None:
    samples = [1.0, 2.0, 3.0, 4.0, 5.0]
    model = measured(samples, in_order=True)
    draw = model.sampler(seed=3, worker=0)
    drawn = [draw(0.0) for _ in range(11)]
    start = samples.index(drawn[0])
    assert drawn == [samples[(start + index) % 5] for index in range(11)]
    assert len({model.sampler(seed, 0)(0.0) for seed in range(30)}) == 5
    assert model.describe == "measured(5 samples, median 3, in order)"


def test_measured_in_order_of_several_workers_stays_in_step() -> None:
    """Both begin at the same share of what was measured of them at the same time."""
    first, second = (measured(range(start, start + 100), in_order=True) for start in (1, 1001))
    for seed in range(10):
        assert second.sampler(seed, 1)(0.0) - first.sampler(seed, 0)(0.0) == 1000

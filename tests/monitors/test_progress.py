from __future__ import annotations

import atexit
import math
import threading
import time
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from freewheel.events import (
    Dropped,
    Evaluated,
    Evaluating,
    Event,
    Resumed,
    RunFinished,
    RunStarted,
    Tick,
    WorkerFailed,
    WorkersChanged,
    WorkersKept,
    WorkerSlowed,
)
from freewheel.monitors import progress


def started(**changes: Any) -> RunStarted:
    values: dict[str, Any] = {
        "planned_samples": 10_000,
        "max_seconds": None,
        "target": None,
        "config": {"model": "cnn"},
    }
    return RunStarted("hogwild", "threads", 2, 16, 0, trainable=421_642, **{**values, **changes})


def finished(reason: str = "epochs", **changes: Any) -> RunFinished:
    values: dict[str, Any] = {
        "seconds": 20.0, "wall_seconds": 22.0, "cpu_seconds": 39.0, "samples": 10_000, "steps": 625,
        "worker_samples": [5000, 5000], "worker_steps": [313, 312], "ledger": {},
        "staleness": {0: 100, 1: 500, 2: 25}, "metrics": {"accuracy": 0.85}, "target_seconds": None,
        "peak_rss_bytes": 300 * 2**20, "start_rss_bytes": 200 * 2**20,
    }  # fmt: skip
    return RunFinished(reason, **{**values, **changes})


def tick(seconds: float, loss: float = 0.5) -> Tick:
    count = round(250 * seconds)
    return Tick(seconds, [count + 10, count - 10] if count else [0, 0], loss, 1.0, 250 * 2**20, 1.9 * seconds)


def run(*events: Event, terminal: bool = False) -> str:
    out = StringIO()
    show = progress(Console(file=out, force_terminal=terminal, width=110, color_system=None, _environ={}))
    for event in events:
        show(event)
    return out.getvalue()


TICKS = [tick(0.25 * index) for index in range(1, 81)]  # 20 seconds


def test_plain_lines_come_every_five_seconds_of_the_training_clock() -> None:
    lines = run(started(), *TICKS, finished()).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["5.0", "10.0", "15.0", "20.0"]
    assert lines[2].split("  ")[-7:] == [
        "5,000 samples", "50%", "500/s", "loss 0.5000", "staleness 1.00", "memory 250.0 MiB", "10.0 s left",
    ]  # fmt: skip


def test_plain_lines_have_each_evaluation() -> None:
    evaluations = [
        Evaluated(second, round(500 * second), 0.1, {"accuracy": 0.1 * second}) for second in (1.0, 2.0, 2.1)
    ]
    lines = run(started(), *evaluations, finished()).splitlines()
    assert len(lines) == 5
    assert "evaluated: accuracy 0.2000" in lines[2]


def test_plain_lines_say_that_an_evaluation_begins_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begins_and_ends = iter(
        [0.0, 0.1, 10.0, 12.0, 20.0, 20.1]
    )  # the first is announced: nobody knows how long
    monkeypatch.setattr(time, "perf_counter", lambda: next(begins_and_ends))
    evaluations = [(Evaluating(), Evaluated(second, 1, 0.1, {"loss": second})) for second in (1.0, 2.0, 3.0)]
    lines = run(started(), tick(1.0), *sum(evaluations, ()), finished()).splitlines()
    assert [line.split("  ")[-1] for line in lines[1:-1]] == [
        "evaluating",
        "evaluated: loss 1.0000",
        "evaluated: loss 2.0000",
        "evaluating",
        "evaluated: loss 3.0000",
    ]
    assert lines[1].split() == ["1.0", "s", "500", "samples", "evaluating"]


def test_the_terminal_says_that_the_model_is_being_evaluated() -> None:
    def last_drawn(*events: Event) -> str:
        written = run(started(), tick(5.0), *events, terminal=True)
        return written[written.rindex("hogwild on threads") :]

    evaluated = Evaluated(5.0, 2500, 0.2, {"accuracy": 0.8})
    assert "evaluating" in last_drawn(Evaluating())
    assert "left" not in last_drawn(Evaluating())
    for after in ([evaluated], [tick(5.25)]):
        drawn = last_drawn(Evaluating(), *after)
        assert "evaluating" not in drawn
        assert "left" in drawn


def test_title_and_summary() -> None:
    first, *_, last = run(started(), *TICKS, finished()).splitlines()
    assert (
        first
        == "hogwild on threads, 2 workers: cnn, 421,642 weights, batch 16, seed 0, 10,000 samples planned"
    )
    assert last == (
        "done: 10,000 samples in 20.0 s (500/s), accuracy 0.8500, mean staleness 0.88, peak memory 300.0 MiB"
    )


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("error", "ended with an error"),
        ("interrupted", "interrupted"),
        ("target", "target reached"),
        ("odd", "odd"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_every_end_is_one_line(reason: str, word: str, terminal: bool) -> None:
    written = run(started(), tick(1.0), finished(reason), terminal=terminal)
    assert written.splitlines()[-1].startswith(f"{word}: 10,000 samples")


def test_a_failed_worker_is_named() -> None:
    for terminal in (False, True):
        written = run(
            started(), WorkerFailed(1, 7, "ValueError: [bad]"), finished("error"), terminal=terminal
        )
        assert "worker 1 failed in its step 7: ValueError: [bad]" in written


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (WorkersChanged(2, 6, 3.5, 0.25), "goes on with 6 workers in place of 2, after"),
        (WorkersKept(2, 9, "`workers`=9 is more than the 4 streams", 3.5), "keeps 2 workers: `workers`=9 is"),
        (
            WorkerSlowed(1, 4.26, True, 3.5),
            "worker 1 is slow: its steps take 4.3 times as long as the others'",
        ),
        (WorkerSlowed(1, 1.1, False, 9.5), "worker 1 keeps up again"),
        (
            Resumed("runs/a/checkpoints/40", 2.0, [300, 340], 40),
            "goes on from runs/a/checkpoints/40: 640 samples",
        ),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_what_becomes_of_workers_is_told(event: Event, line: str, terminal: bool) -> None:
    assert line in run(started(), event, finished(), terminal=terminal)


def test_a_number_of_workers_that_stays_is_not_told() -> None:
    assert "goes on" not in run(started(), WorkersChanged(2, 2, 3.5, 0.0), finished())


def test_the_terminal_shows_how_the_run_stands() -> None:
    events: list[Event] = [
        *TICKS[:40],
        Evaluated(10.0, 5000, 0.5, {"accuracy": 0.8}),
        Dropped(0, "non-finite", 3),
    ]
    written = run(started(), *events, tick(10.25), terminal=True)
    drawn = written[written.rindex("hogwild on threads") :]
    for part in (
        "51%",
        "9.8 s left",
        "loss",
        "0.5000",
        "accuracy 0.8000",
        "500",
        "by worker: 250  250",
        "1.00",
        "250.0 MiB",
    ):
        assert part in drawn
    assert "3 updates" in drawn


def test_the_terminal_is_left_clean() -> None:
    written = run(started(), *TICKS, finished(), terminal=True)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back
    assert written.endswith("300.0 MiB\n")


def test_a_run_that_breaks_off_gives_the_cursor_back_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[Any] = []
    monkeypatch.setattr(atexit, "register", waiting.append)
    monkeypatch.setattr(atexit, "unregister", waiting.remove)
    run(started(), tick(1.0), finished(), terminal=True)
    assert waiting == []
    run(started(), tick(1.0), terminal=True)
    assert len(waiting) == 1
    waiting[0]()


def test_a_second_run_is_shown_even_when_the_first_broke_off() -> None:
    for terminal in (False, True):
        written = run(
            started(), tick(1.0), started(target=("accuracy", 0.9)), tick(1.0), finished(), terminal=terminal
        )
        assert "until accuracy 0.9" in written
        assert written.splitlines()[-1].startswith("done")
        assert "target not reached" in written


def test_no_thread_is_started() -> None:
    before = threading.active_count()
    out = StringIO()
    show = progress(Console(file=out, force_terminal=True, _environ={}))
    show(started())
    show(tick(1.0))
    assert threading.active_count() == before
    show(finished())


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "plan",
    [
        {"planned_samples": None},
        {"planned_samples": None, "max_seconds": 60.0},
        {"planned_samples": 0},
        {"config": {}},
    ],
)
def test_runs_without_a_plan_and_without_numbers(plan: dict[str, Any], terminal: bool) -> None:
    nothing = Tick(6.0, [0, 0], math.nan, math.nan, 0, 0.0)
    empty = finished(seconds=0.0, samples=0, staleness={}, metrics={"accuracy": math.nan}, peak_rss_bytes=0)
    written = run(started(**plan), nothing, Evaluated(6.0, 0, 0.0, {}), empty, terminal=terminal)
    assert written.splitlines()[-1] == "done: 0 samples in 0.000 s, accuracy n/a"
    assert ("54.0 s left" in written) == (plan.get("max_seconds") is not None)


def test_events_before_the_start_are_passed_over() -> None:
    for terminal in (False, True):
        assert run(tick(1.0), finished(), terminal=terminal) == ""


def test_many_workers_become_a_range() -> None:
    busy = Tick(1.0, [10 * index for index in range(1, 13)], 0.5, 1.0, 2**20, 1.0)
    assert "by worker: 10.0 to 120" in run(started(), busy, terminal=True)

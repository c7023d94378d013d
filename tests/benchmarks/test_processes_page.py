from __future__ import annotations

from typing import Any

import pytest

from benchmarks import processes

SHARED = {"checkpoint_every": 5.0, "checkpointed_seconds": 22.0, "deaths_seconds": 10.0}
GOOD = {
    "samples_per_second": 100.0,
    "checkpoints": 4,
    "bytes": 2**20,
    "write_seconds": [0.1, 0.2, 0.1, 0.3],
    "noticed_s": [0.01, 0.02],
    "replaced_s": [0.2, 0.3],
    "seconds": 0.5,
    "left": 0,
    "first_s": 4.0,
    "next_s": 0.5,
}

Results = dict[str, dict[str, list[dict[str, Any]]]]


@pytest.fixture
def results() -> Results:
    groups = processes.contestants(SHARED)
    found = {
        name: {contestant.label: [dict(GOOD) for _ in range(3)] for contestant in group}
        for name, group in groups.items()
    }
    for run in found["workers"]["1 process"]:
        run["samples_per_second"] = 52.0
    return found


def _missed(results: Results) -> list[str]:
    return [check.what for check in processes.checks(results) if check.met is False]


def test_every_target_can_be_met(results: Results) -> None:
    assert not _missed(results)
    assert any(check.met for check in processes.checks(results))


@pytest.mark.parametrize(
    ("group", "label", "name", "value", "missed"),
    [
        ("workers", "1 process", "samples_per_second", 60.0, "two processes / one"),
        ("pushes", "Downpour, threads", "samples_per_second", 89.0, "CNN, threads: Downpour"),
        ("checkpoints", "CNN, processes, checkpoints", "samples_per_second", 94.0, "CNN, processes"),
        ("checkpoints", "MLP, threads, checkpoints", "samples_per_second", 94.0, "MLP, threads"),
        ("beginning", "2 processes", "next_s", 1.5, "the next run of a program"),
    ],
)
def test_a_missed_target_is_named(
    results: Results, group: str, label: str, name: str, value: float, missed: str
) -> None:
    for run in results[group][label]:
        run[name] = value
    [what] = _missed(results)
    assert missed in what


@pytest.mark.parametrize(
    ("group", "label", "name", "value"),
    [
        ("deaths", "synchronous", "noticed_s", [0.01, 0.6]),
        ("preemption", "MLP, threads", "seconds", 11.0),
        ("preemption", "MLP, threads", "left", 1),
    ],
)
def test_the_slowest_counts(results: Results, group: str, label: str, name: str, value: Any) -> None:
    results[group][label][1][name] = value
    assert len(_missed(results)) == 1


def test_no_death_is_not_a_death_that_was_noticed_soon(results: Results) -> None:
    for run in results["deaths"]["hogwild"]:
        run["noticed_s"] = []
    [what] = _missed(results)
    assert "0 deaths" in what


def test_tables_have_a_row_for_everybody(results: Results) -> None:
    rows = {table.title: len(table.rows) for table in processes.tables(results)}
    assert rows == {
        "MLP, batch 16": 4,
        "CNN, batch 16, two workers": 6,
        "Two workers, with checkpoints and without": 8,
        "Writing a checkpoint": 8,
        "Seconds from a death until": 6,
        "Seconds from SIGTERM to the end": 4,
        "Seconds of a run of one step": 8,
    }

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic_runs import events, finished, started

from freewheel.errors import DataError
from freewheel.events import Evaluated, Tick, to_json
from freewheel.report import Run, summarize
from freewheel.report.runs import main_metric


def record(folder: Path, text: str) -> Path:
    (folder / "events.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_a_run_directory_gives_back_its_events(tmp_path: Path) -> None:
    made = events()
    record(tmp_path, "\n".join(map(to_json, made)) + "\n")
    run = Run.from_directory(tmp_path)
    assert run.label == "hogwild"
    assert list(run.events) == made
    assert Run.from_directory(tmp_path / "events.jsonl", "mine").label == "mine"


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    lines = [to_json(event) for event in events()]
    record(tmp_path, "\n".join(lines[:9]) + "\n" + lines[9][:20])
    run = Run.from_directory(tmp_path)
    assert len(run.events) == 9
    assert run.finished.reason == "unfinished"
    assert not run.complete


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with RunStarted"),
        ("not a record\n", "does not begin with RunStarted"),
        ("7\n8\n", "no record of a freewheel run"),
        ("{}\n{}\n", "line 1: unknown event None"),
        ("[1]\n[2]\n", "no record of a freewheel run"),
        (to_json(finished()) + "\n", "does not begin with RunStarted"),
        (to_json(started())[:30] + "\n" + to_json(finished()) + "\n", "line 1"),
    ],
)
def test_a_foreign_or_damaged_file_is_an_error_that_names_it(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        Run.from_directory(record(tmp_path, text))
    assert str(tmp_path) in str(caught.value)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="damaged"):
        Run.from_directory(tmp_path)


def test_a_missing_directory_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give a run directory"):
        Run.from_directory(tmp_path / "nowhere")


def test_events_without_a_start_are_refused() -> None:
    with pytest.raises(DataError, match="no RunStarted"):
        Run("x", [finished()])


def test_an_unfinished_run_is_summed_up_from_its_last_tick() -> None:
    done = Run(
        "x", [started(), Tick(2.0, [30, 20], 0.5, 1.0, 1000, 3.9), Tick(4.0, [60, 50], 0.4, 1.0, 900, 7.8)]
    )
    assert (done.finished.seconds, done.finished.samples, done.finished.peak_rss_bytes) == (4.0, 110, 1000)
    assert done.samples_per_second == 27.5
    assert done.mean_staleness == 1.0


def test_an_empty_run_has_no_numbers() -> None:
    run = Run("x", [started()])
    assert math.isnan(run.samples_per_second)
    assert math.isnan(run.mean_staleness)
    assert run.metrics == {}


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"loss": 1.0, "accuracy": 0.5}, "accuracy"),
        ({"loss": 1.0}, "loss"),
        ({"bleu": 3.0}, "bleu"),
        ({}, "training loss"),
    ],
)
def test_main_metric(metrics: dict[str, float], expected: str) -> None:
    assert main_metric([Run("x", [started(target=None), Evaluated(1.0, 10, 0.1, metrics)])]) == expected


def test_summaries_group_repeats_by_label() -> None:
    runs = [Run("a", events(seed=0)), Run("b", events("synchronous", seed=0)), Run("a", events(seed=1))]
    first, second = summarize(runs)
    assert [repeat.seed for repeat in first.repeats] == [0, 1]
    assert second.synchronous
    assert not first.synchronous

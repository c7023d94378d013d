"""Checkpoints of whole runs: when they are written, what is refused, what the run directory shows."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import freewheel
from freewheel.checkpoints import folder
from freewheel.checkpoints.saver import Cut, Saver
from freewheel.errors import CheckpointError, ConfigurationError
from freewheel.events import (
    CheckpointFailed,
    CheckpointWritten,
    Evaluated,
    Event,
    Resumed,
    RunFinished,
    RunStarted,
    Tick,
)
from freewheel.report import Run

INPUTS = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
DATA = (INPUTS, INPUTS[:, :3].argmax(1))


def model(hidden: int = 8) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def fit(**settings: Any) -> freewheel.Result:
    arguments: dict[str, Any] = {
        **{"workers": 2, "batch_size": 8, "epochs": 2, "engine": "serial", "evaluate": DATA},
        **{"method": freewheel.stale_synchronous(1, 0.05), "loss": nn.CrossEntropyLoss()},
        **settings,
    }
    network = arguments.pop("model", None) or model()
    return freewheel.fit(network, arguments.pop("data", DATA), **arguments)


def due_after(monkeypatch: pytest.MonkeyPatch, *looks: int) -> None:
    """Checkpoints are due when a serial run looks for the so-many-th time, once a step."""
    count = itertools.count(1)
    monkeypatch.setattr(Saver, "is_due", lambda saver, seconds: next(count) in looks)


def names(run: Path) -> list[int]:
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


# --- when ---


def test_one_is_written_at_the_end_and_told(tmp_path: Path) -> None:
    result = fit(run_dir=tmp_path)
    (written,) = (event for event in result.events if isinstance(event, CheckpointWritten))
    assert (written.steps, Path(written.folder)) == (24, tmp_path / "checkpoints" / "24")
    assert written.bytes == sum(file.stat().st_size for file in Path(written.folder).iterdir())
    assert isinstance(result.events[-1], RunFinished)


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_none_are_written_without_a_folder_or_if_none_are_wanted(engine: str, tmp_path: Path) -> None:
    fit(engine=engine, run_dir=tmp_path, checkpoint_every=None)
    assert not (tmp_path / "checkpoints").exists()
    assert not any(isinstance(event, CheckpointWritten) for event in fit(engine=engine).events)


def test_a_simulated_run_writes_none_and_does_not_go_on(tmp_path: Path) -> None:
    fit(engine="simulated", run_dir=tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ConfigurationError, match="`resume` works with the engines threads, proc"):
        fit(engine="simulated", resume=tmp_path)


@pytest.mark.parametrize("folder", [None, "run"])
def test_an_interval_that_a_simulated_run_would_not_heed_is_refused(
    folder: str | None, tmp_path: Path
) -> None:
    run_dir = None if folder is None else tmp_path / folder
    with pytest.raises(ConfigurationError, match=r"`checkpoint_every` works .* got 60\.0 with 'simulated'"):
        fit(engine="simulated", run_dir=run_dir, checkpoint_every=60.0)
    assert not any(tmp_path.iterdir())
    fit(engine="simulated", run_dir=tmp_path, checkpoint_every=None)
    assert not (tmp_path / "checkpoints").exists()


def test_the_last_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    due_after(monkeypatch, *range(1, 20))
    fit(run_dir=tmp_path, keep_checkpoints=2)
    assert names(tmp_path) == [19, 24]


def test_they_are_due_after_so_many_seconds_of_training(tmp_path: Path) -> None:
    saver = Saver(tmp_path, 10.0, 3)
    saver.begin(100.0)
    assert [saver.is_due(seconds) for seconds in (100.0, 109.9, 110.0)] == [False, False, True]
    saver.save(Cut(5, 112.0, {}))
    saver.wait()
    assert [saver.is_due(seconds) for seconds in (121.9, 122.0)] == [False, True]
    assert not Saver(tmp_path, None, 3).is_due(1e9)


def test_none_is_due_while_one_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = Saver(tmp_path, 10.0, 3)
    saver.begin(0.0)
    seen: list[bool] = []

    def write(*arguments: Any) -> Path:
        seen.append(saver.is_due(1000.0))
        return tmp_path

    monkeypatch.setattr(folder, "write", write)
    saver.save(Cut(5, 10.0, {}))
    saver.wait()
    assert seen == [False]
    assert saver.is_due(1000.0)


@pytest.mark.parametrize("value", [0, -1.0, "often", True])
def test_a_time_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`checkpoint_every` must be a number of seconds > 0, got"):
        fit(run_dir=tmp_path, checkpoint_every=value)


@pytest.mark.parametrize("value", [0, 2.5, True, None])
def test_a_number_to_keep_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`keep_checkpoints` must be a whole number >= 1, got"):
        fit(run_dir=tmp_path, keep_checkpoints=value)


def test_the_run_directory_is_its_owners_alone(tmp_path: Path) -> None:
    fit(run_dir=tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700


# --- a full disk ---


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(engine=engine, epochs=1, run_dir=tmp_path)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=r"no checkpoint of step 24 .*No space left.*; the run goes on"):
        result = fit(engine=engine, resume=tmp_path, run_dir=tmp_path)
    assert result.reason == "epochs"
    (failed,) = (event for event in result.events if isinstance(event, CheckpointFailed))
    assert (failed.steps, "No space left" in failed.error) == (24, True)
    assert names(tmp_path) == [12]
    assert folder.read(tmp_path / "checkpoints" / "12").order == 1


def test_a_state_that_cannot_be_written_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from freewheel.sources import Indexed

    monkeypatch.setattr(Indexed, "state", lambda source: {"next": object()})
    with pytest.warns(UserWarning, match="source/next is a object, which no checkpoint can hold"):
        assert fit(run_dir=tmp_path).reason == "epochs"


def test_an_error_that_nobody_thought_of_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Path:
        raise KeyError("a type")

    monkeypatch.setattr(folder, "write", fails)
    with pytest.warns(UserWarning, match="no checkpoint of step 24 .*KeyError: 'a type'"):
        result = fit(run_dir=tmp_path)
    assert [type(event) for event in result.events[-2:]] == [CheckpointFailed, RunFinished]


def test_an_outcome_is_told_that_comes_while_others_are_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(type(tmp_path)):  # type: ignore[misc]  # the platform's kind of path
        def __str__(self) -> str:
            saver.outcomes()
            return str(tmp_path)

    saver = Saver(tmp_path, 1.0, 1)
    monkeypatch.setattr(folder, "write", lambda *_: Told(tmp_path))
    saver.save(Cut(3, 0.5, {}))
    saver.wait()
    assert [outcome.steps for outcome in saver.outcomes()] == [3]


# --- whose checkpoint ---


def frozen() -> nn.Module:
    network = model()
    network[0].bias.requires_grad_(False)  # type: ignore[index]
    return network


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": model(hidden=9)}, r"`model` 0.weight was \[8, 6\], got \[9, 6\]"),
    "frozen": ({"model": frozen()}, r"`model` frozen was \[\], got \[\"0.bias\"\]"),
    "workers": ({"workers": 3}, "`workers` was 2, got 3"),
    "shards": ({"shards": 2}, "`shards` was 1, got 2"),
    "batch_size": ({"batch_size": 4}, "`batch_size` was 8, got 4"),
    "seed": ({"seed": 1}, "`seed` was 0, got 1"),
    "engine": ({"engine": "threads"}, '`engine` was "serial", got "threads"'),
    "method": ({"method": freewheel.downpour()}, '`method` name was "stale_synchronous", got "downpour"'),
    "bound": ({"method": freewheel.stale_synchronous(2, 0.05)}, r"`method` gate was \"bounded\(1\)\""),
    "rate": ({"method": freewheel.stale_synchronous(1, 0.06)}, r"`method` rule was \"sgd\(lr=0.05"),
    "data": ({"data": tuple(column[:90] for column in DATA)}, "`data` samples was 96, got 90"),
    "loss": ({"loss": nn.MultiMarginLoss()}, '`loss` was "CrossEntropyLoss", got "MultiMarginLoss"'),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_job_is_refused(other: str, tmp_path: Path) -> None:
    fit(epochs=1, run_dir=tmp_path)
    settings, message = OTHERS[other]
    with pytest.raises(CheckpointError, match=f"is of another job: {message}.*Resume with the arguments of"):
        fit(resume=tmp_path, **settings)


def test_something_else_than_a_run_is_refused(tmp_path: Path) -> None:
    folder.write(tmp_path / "checkpoints", 3, {"weights": torch.zeros(2)}, 1)
    with pytest.raises(CheckpointError, match="is not one of a run: KeyError"):
        fit(resume=tmp_path)


def test_a_recording_begins_at_the_beginning(tmp_path: Path) -> None:
    fit(run_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="`record`=True needs a run from its beginning"):
        fit(resume=tmp_path, run_dir=tmp_path, record=True)


def test_an_iterator_cannot_be_read_again(tmp_path: Path) -> None:
    fit(run_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="`data` is an iterator, which can be read only once"):
        fit(data=iter([DATA]), resume=tmp_path, epochs=1)


def test_a_comparison_begins_anew() -> None:
    with pytest.raises(ConfigurationError, match=r"`resume` cannot be given to compare\(\)"):
        freewheel.compare(model, DATA, contestants={"a": {}}, seeds=[0], resume="runs/x")


# --- what the run directory shows ---


def test_a_run_that_goes_on_is_one_run_in_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due_after(monkeypatch, 15)
    fit(run_dir=tmp_path, evaluate_every=48)
    result = fit(resume=tmp_path / "checkpoints" / "15", run_dir=tmp_path, evaluate_every=48, epochs=3)
    run = Run.from_directory(tmp_path)
    assert [type(event) for event in run.events] == [type(event) for event in result.events]
    kinds = [type(event) for event in run.events]
    for kind in (RunStarted, Resumed, RunFinished):
        assert kinds.count(kind) == 1
    assert kinds[0] is RunStarted
    assert run.started.planned_samples == 3 * 96
    samples = [sum(event.samples) for event in run.events if isinstance(event, Tick)]
    assert samples == sorted(samples)
    seconds = [event.seconds for event in run.events if isinstance(event, Tick | Evaluated | Resumed)]
    assert seconds == sorted(seconds)
    evaluated = [event.samples for event in run.evaluations]
    assert evaluated[:6] == [48, 96, 144, 192, 240, 288]
    assert run.finished.samples == result.samples == 288
    assert result.report(tmp_path / "again.html").is_file()


def test_a_run_that_is_done_does_not_write_its_last_checkpoint_again(tmp_path: Path) -> None:
    fit(run_dir=tmp_path)
    before = (tmp_path / "checkpoints" / "24" / "manifest.json").stat().st_mtime_ns
    fit(resume=tmp_path, run_dir=tmp_path)
    assert (tmp_path / "checkpoints" / "24" / "manifest.json").stat().st_mtime_ns == before


def test_seconds_go_on(tmp_path: Path) -> None:
    first = fit(epochs=1, run_dir=tmp_path)
    second = fit(epochs=2, resume=tmp_path)
    assert second.seconds > first.seconds
    assert second.wall_seconds > second.seconds
    assert second.history[0].seconds > 0


def test_the_old_events_are_there_until_the_run_begins_again(tmp_path: Path) -> None:
    fit(epochs=1, run_dir=tmp_path)
    before = (tmp_path / "events.jsonl").read_bytes()
    with pytest.raises(CheckpointError):
        fit(resume=tmp_path, run_dir=tmp_path, workers=3)
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_a_run_may_go_on_in_another_directory(tmp_path: Path) -> None:
    fit(epochs=1, run_dir=tmp_path / "one")
    fit(epochs=2, resume=tmp_path / "one", run_dir=tmp_path / "two")
    assert names(tmp_path / "one") == [12]
    assert names(tmp_path / "two") == [24]
    assert len(Run.from_directory(tmp_path / "two").evaluations) == 2


def test_a_torn_or_missing_record_of_events_does_not_matter(tmp_path: Path) -> None:
    whole = fit(run_dir=tmp_path / "whole")
    for harm in ("torn", "missing"):
        fit(epochs=1, run_dir=tmp_path / harm)
        events = tmp_path / harm / "events.jsonl"
        if harm == "torn":
            events.write_text(events.read_text()[:700])
        else:
            events.unlink()
        resumed = fit(resume=tmp_path / harm, run_dir=tmp_path / harm)
        assert resumed.samples == whole.samples
        assert [entry.metrics for entry in resumed.history] == [entry.metrics for entry in whole.history]
        assert Run.from_directory(tmp_path / harm).finished.samples == whole.samples


def test_a_new_run_is_refused_where_one_is_and_told_how_to_go_on(tmp_path: Path) -> None:
    fit(run_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"holds a run already; .*resume='.*' goes on with it"):
        fit(run_dir=tmp_path)


def test_a_run_does_not_go_on_in_the_directory_of_another(tmp_path: Path) -> None:
    fit(epochs=1, run_dir=tmp_path / "one")
    fit(epochs=1, run_dir=tmp_path / "other")
    with pytest.raises(ConfigurationError, match="other holds a run already"):
        fit(resume=tmp_path / "one", run_dir=tmp_path / "other")


def test_later_checkpoints_of_a_course_that_was_left_do_not_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    due_after(monkeypatch, 5, 20)
    fit(run_dir=tmp_path, keep_checkpoints=5)
    monkeypatch.setattr(Saver, "is_due", lambda saver, seconds: False)
    fit(
        resume=tmp_path / "checkpoints" / "5",
        run_dir=tmp_path,
        max_samples=80,
        epochs=None,
        keep_checkpoints=5,
    )
    assert names(tmp_path) == [5, 10, 20, 24]
    assert folder.newest(tmp_path).folder.name == "10"


def test_writing_goes_on_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    due_after(monkeypatch, 3)
    told: list[Event] = []
    steps_then: list[int] = []

    def slow(parent: Path, steps: int, tree: Any, keep: int) -> Path:
        if steps == 3:  # ends when training has gone on
            deadline = time.monotonic() + 60
            while not any(isinstance(event, Evaluated) for event in told) and time.monotonic() < deadline:
                time.sleep(0.001)
            steps_then.append(sum(isinstance(event, Evaluated) for event in told))
        return real(parent, steps, tree, keep)

    real = folder.write
    monkeypatch.setattr(folder, "write", slow)
    fit(run_dir=tmp_path, monitors=[told.append])
    assert steps_then[0] >= 1
    assert names(tmp_path) == [3, 24]

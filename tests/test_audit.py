"""The audit finds nothing in honest records, and names what was changed in others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import freewheel
from freewheel import rules
from freewheel.errors import ConfigurationError, DataError, TrainingError
from freewheel.events import Dropped, Evaluated, Event, RunFinished, Steps, Tick
from freewheel.methods import Method
from freewheel.recording import Kind, Recording
from freewheel.simulation import die, duplicate, lose, reorder
from recordings import METHODS, SAMPLES, WORKERS, blobs, measure, meeting, network, record

LEASES = 2 * SAMPLES // 8
LIVE = {
    "hogwild": freewheel.hogwild(0.05),
    "layer": freewheel.hogwild(0.05, granularity="layer"),
    "synchronous": freewheel.synchronous(0.05),
}

COPYING = ("stale_synchronous", "easgd", "parallel_sgd", "averaged", "in-flight")


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the drawing of plots that nobody looks at."""
    monkeypatch.setattr("freewheel.rundir.finish", lambda folder, result: None)


def logged(method: Method, **settings: Any) -> list[Event]:
    events: list[Event] = []
    further = settings.pop("further", [])
    arguments: dict[str, Any] = {"epochs": 2, "evaluate": measure, "evaluate_every": 100, **settings}
    freewheel.fit(
        network(),
        blobs(),
        loss=nn.CrossEntropyLoss(),
        method=method,
        workers=WORKERS,
        batch_size=8,
        monitors=[events.append, *further],
        **arguments,
    )
    return events


def recorded(folder: Path, name: str) -> freewheel.Audit:
    method = METHODS[name]
    record(folder, method, shards=2, step=meeting(None))
    return freewheel.audit(folder)


# --- honest records ---


@pytest.mark.parametrize("name", METHODS)
def test_a_recorded_run_adds_up(name: str, tmp_path: Path) -> None:
    found = recorded(tmp_path, name)
    assert found.violations == ()
    assert (found.steps, found.samples) == (LEASES, 2 * SAMPLES)
    assert found.checked == ("events", "recording")
    assert found.pushed == found.applied + found.absorbed + found.pending + sum(found.dropped.values())
    assert freewheel.audit(Recording.load(tmp_path)).violations == ()


@pytest.mark.parametrize("engine", ["serial", "threads", "simulated"])
@pytest.mark.parametrize(
    "name", [*LIVE, "stale_synchronous", "easgd", "parallel_sgd", "averaged", "in-flight"]
)
def test_the_events_of_every_engine_add_up(name: str, engine: str) -> None:
    found = freewheel.audit(logged({**LIVE, **METHODS}[name], engine=engine))
    assert found.violations == ()
    assert found.steps == LEASES
    assert found.pushed > 0


@pytest.mark.parametrize("seed", range(3))
def test_a_simulated_run_with_faults_adds_up(seed: int) -> None:
    faults = (die(1, 5, back_after_s=0.1), duplicate(0.1), lose(0.1), reorder(0.2, delay_s=0.03))
    engine = freewheel.Simulated(faults=faults)
    found = freewheel.audit(logged(METHODS["guarded"], engine=engine, seed=seed))
    assert found.violations == ()
    assert found.steps == LEASES
    assert found.duplicates > 0
    assert found.dropped["lost"] > 0


def test_drops_are_counted_by_reason() -> None:
    rule = rules.chain(rules.expire(0), rules.sgd(0.05))
    found = freewheel.audit(logged(freewheel.stale_synchronous(2, rule=rule), engine="serial"))
    assert found.ok
    assert sum(found.dropped.values()) == found.pushed - found.applied > 0


def test_a_run_that_was_cut_off_adds_up() -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Evaluated):
            raise KeyboardInterrupt

    for name in ("downpour", "local_sgd"):
        found = freewheel.audit(logged(METHODS[name], further=[interrupt]))
        assert found.violations == ()
        assert 0 < found.steps < LEASES


def test_a_run_that_failed_adds_up(tmp_path: Path) -> None:
    def failing(module: nn.Module, batch: Any) -> Any:
        loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
        return loss * float("nan") if module.training and next(calls) > 12 else loss

    calls = iter(range(10**6))
    with pytest.raises(TrainingError, match="diverged"):
        record(tmp_path, METHODS["stale_synchronous"], step=failing, epochs=9)
    found = freewheel.audit(tmp_path)
    assert found.violations == ()
    assert found.dropped["non-finite loss"] >= 20


# --- tampered events ---


def steps_of(events: list[Event]) -> int:
    return next(i for i, event in enumerate(events) if isinstance(event, Steps) and len(event.lease) > 2)


def without_a_step(events: list[Event]) -> None:
    place = steps_of(events)
    event = events[place]
    assert isinstance(event, Steps)
    columns = {name: getattr(event, name)[:-1] for name in event.__slots__}
    events[place] = Steps(**columns)


def with_a_step_twice(events: list[Event]) -> None:
    place = steps_of(events)
    event = events[place]
    assert isinstance(event, Steps)
    events[place] = Steps(
        **{name: [*getattr(event, name), getattr(event, name)[0]] for name in event.__slots__}
    )


def with_a_lease_changed(events: list[Event]) -> None:
    place = steps_of(events)
    event = events[place]
    assert isinstance(event, Steps)
    events[place] = replace(event, lease=[event.lease[1], *event.lease[1:]])


def with_staleness_changed(events: list[Event]) -> None:
    place = steps_of(events)
    event = events[place]
    assert isinstance(event, Steps)
    events[place] = replace(event, staleness=[event.staleness[0] + 1, *event.staleness[1:]])


def with_the_book_changed(events: list[Event]) -> None:
    place, event = next((i, e) for i, e in enumerate(events) if isinstance(e, RunFinished))
    events[place] = replace(event, ledger={**event.ledger, "applied": event.ledger["applied"] + 1})


def with_pushes_forgotten(events: list[Event]) -> None:
    place, event = next((i, e) for i, e in enumerate(events) if isinstance(e, RunFinished))
    ledger = {**event.ledger, "applied": event.ledger["applied"] - 1, "pushed": event.ledger["pushed"] - 1}
    events[place] = replace(event, ledger=ledger)


def with_totals_changed(events: list[Event]) -> None:
    place, event = next((i, e) for i, e in enumerate(events) if isinstance(e, RunFinished))
    events[place] = replace(event, steps=event.steps + 1)


def without_an_end(events: list[Event]) -> None:
    events[:] = [event for event in events if not isinstance(event, RunFinished)]


def with_a_drop_forgotten(events: list[Event]) -> None:
    events[:] = [event for event in events if not isinstance(event, Dropped)]


def with_a_clock_that_runs_back(events: list[Event]) -> None:
    place, event = [(i, e) for i, e in enumerate(events) if isinstance(e, Tick)][-1]
    events[place] = replace(event, samples=[0 for _ in event.samples])


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (
            without_a_step,
            ["nobody computed batch", "never reported step", "by its steps", "staleness adds up"],
        ),
        (with_a_step_twice, ["computed more than once", "reported step", "by the totals"]),
        (with_a_lease_changed, ["computed more than once", "nobody computed batch"]),
        (with_staleness_changed, ["staleness adds up"]),
        (with_the_book_changed, ["does not add up"]),
        (with_pushes_forgotten, ["but the book has"]),
        (with_totals_changed, ["the totals say"]),
        (without_an_end, ["without RunFinished"]),
        (with_a_drop_forgotten, ["dropped (expired)"]),
        (with_a_clock_that_runs_back, ["there were 0 examples"]),
    ],
)
def test_what_was_changed_in_the_events_is_named(
    tamper: Callable[[list[Event]], None], words: list[str]
) -> None:
    rule = rules.chain(rules.expire(1), rules.sgd(0.05))
    events = logged(freewheel.stale_synchronous(2, rule=rule), engine="serial")
    assert freewheel.audit(events).ok
    tamper(events)
    found = freewheel.audit(events)
    assert not found.ok
    for word in words:
        assert any(word in violation for violation in found.violations), (word, found.violations)


# --- tampered recordings ---


def at(recording: Recording, kind: Kind, number: int) -> int:
    return int(np.flatnonzero(recording.columns["kind"] == kind)[number])


def without(recording: Recording, place: int) -> Recording:
    long = {name: len(column) == len(recording) for name, column in recording.columns.items()}
    columns = {
        name: np.delete(column, place) if long[name] else column for name, column in recording.columns.items()
    }
    return Recording(recording.header, columns)


def doubled(recording: Recording, place: int) -> Recording:
    columns = {
        name: np.insert(column, place, column[place]) if len(column) == len(recording) else column
        for name, column in recording.columns.items()
    }
    return Recording(recording.header, columns)


def changed(recording: Recording, name: str, place: int, by: int) -> Recording:
    column = recording.columns[name].copy()
    column[place] += by
    return Recording(recording.header, {**recording.columns, name: column})


def with_book(recording: Recording, **ledger: int) -> Recording:
    finished = recording.header["finished"]
    book = {**finished["ledger"], **{name: finished["ledger"][name] + by for name, by in ledger.items()}}
    return Recording({**recording.header, "finished": {**finished, "ledger": book}}, recording.columns)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (
            lambda r: without(r, at(r, Kind.PUSH, 5)),
            ["missing, though", "one was lost", "but 60 by the book"],
        ),
        (lambda r: doubled(r, at(r, Kind.PUSH, 5)), ["taken more than once", "applied twice"]),
        (lambda r: without(r, at(r, Kind.STEP, 5)), ["nobody computed batch", "but never began on it"]),
        (
            lambda r: doubled(r, at(r, Kind.STEP, 5)),
            ["computed more than once", "reported no such step"],
        ),
        (lambda r: changed(r, "samples", at(r, Kind.PUSH, 7), 8), ["but computed only"]),
        (lambda r: changed(r, "version", at(r, Kind.PUSH, 7), 1), ["counts 2 updates where 1 can be"]),
        (lambda r: with_book(r, pushed=1), ["does not add up"]),
        (lambda r: with_book(r, applied=-1, pending=1), ["updates were applied by the operations"]),
        (lambda r: Recording({**r.header, "finished": None}, r.columns), ["the run was killed"]),
    ],
)
def test_what_was_changed_in_a_recording_is_named(
    tamper: Callable[[Recording], Recording], words: list[str], tmp_path: Path
) -> None:
    record(tmp_path, METHODS["stale_synchronous"])
    assert freewheel.audit(tmp_path).ok
    tamper(Recording.load(tmp_path)).save(tmp_path)
    found = freewheel.audit(tmp_path)
    assert not found.ok
    for word in words:
        assert any(word in violation for violation in found.violations), (word, found.violations)


def test_a_line_that_is_missing_in_the_file_is_named(tmp_path: Path) -> None:
    record(tmp_path, METHODS["downpour"])
    file = tmp_path / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if json.loads(line)["event"] == "Steps")
    file.write_text("".join(lines[:place] + lines[place + 1 :]))
    assert any("reported no such step" in violation for violation in freewheel.audit(tmp_path).violations)


# --- what cannot be audited ---


def test_a_run_without_steps_says_how_to_record_them(tmp_path: Path) -> None:
    record(tmp_path, METHODS["downpour"], record=False)
    with pytest.raises(DataError, match="record=True"):
        freewheel.audit(tmp_path)


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run was recorded"):
        freewheel.audit(tmp_path)


def test_something_else_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`run` must be"):
        freewheel.audit(7)  # type: ignore[arg-type]  # on purpose

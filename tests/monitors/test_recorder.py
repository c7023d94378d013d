from __future__ import annotations

from pathlib import Path

import pytest

from freewheel.errors import ConfigurationError
from freewheel.events import Evaluated, Evaluating, Event, RunStarted, Steps, Tick, read
from freewheel.monitors import recorder

START = RunStarted("hogwild", "threads", 2, 16, 0, 1000, None, 10, ("accuracy", 0.9), {"lr": 0.1})
STEPS = Steps([0], [0], [0], [16], [2.0], [0], [0.1])
EVENTS: list[Event] = [
    START,
    Tick(1.0, [500, 400], 0.5, 1.0, 1000, 1.9),
    STEPS,
    Evaluating(),
    Evaluated(2.0, 900, 0.9, {"accuracy": 0.8}),
]


def test_what_is_read_is_what_was_emitted(tmp_path: Path) -> None:
    record = recorder(tmp_path / "events.jsonl", steps=True)
    for event in EVENTS:
        record(event)
    assert list(read(tmp_path / "events.jsonl")) == EVENTS


def test_steps_are_written_only_when_asked_for(tmp_path: Path) -> None:
    record = recorder(tmp_path / "events.jsonl")
    for event in EVENTS:
        record(event)
    assert list(read(tmp_path / "events.jsonl")) == [event for event in EVENTS if event is not STEPS]


def test_every_event_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    record = recorder(path)
    for number, event in enumerate([EVENTS[0], EVENTS[1], EVENTS[3]], start=1):
        record(event)
        assert path.read_text(encoding="utf-8").count("\n") == number


def test_an_older_record_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("old\n")
    recorder(path)
    assert path.read_text() == ""


def test_folders_are_made(tmp_path: Path) -> None:
    recorder(tmp_path / "a" / "b" / "events.jsonl")(START)
    assert list(read(tmp_path / "a" / "b" / "events.jsonl")) == [START]


def test_a_place_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigurationError, match=r"cannot record events in .*events\.jsonl: .*choose another `path`"
    ):
        recorder(tmp_path / "file" / "events.jsonl")


def test_an_error_of_the_disk_later_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    record = recorder(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigurationError, match=r"events\.jsonl"):
        record(START)

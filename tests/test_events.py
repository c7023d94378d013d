"""Events: what is written to a file comes back the same."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from freewheel.events import (
    CheckpointFailed,
    CheckpointWritten,
    Dropped,
    Evaluated,
    Evaluating,
    Event,
    Resumed,
    RunFinished,
    RunStarted,
    Steps,
    Tick,
    Traffic,
    WorkerFailed,
    WorkerRestarted,
    WorkersChanged,
    WorkersKept,
    WorkerSlowed,
    from_json,
    to_json,
)

EVENTS: list[Event] = [
    RunStarted("hogwild", "threads", 2, 16, 0, None, 5.0, 10, ("loss", 0.5, "min"), {"b": [1, None]}),
    Steps([0, 1], [0, 0], [0, 1], [16, 8], [0.5, 0.25], [0, 1], [0.1, 0.2]),
    Tick(1.5, [10, 20], 0.5, 1.0, 1024, 2.5),
    Evaluating(),
    Evaluated(1.5, 30, 0.1, {"accuracy": 0.9}),
    Resumed("runs/first/checkpoints/40", 1.5, [10, 20], 40),
    CheckpointWritten("runs/first/checkpoints/40", 1.5, 40, 1024, 0.25),
    CheckpointFailed(1.5, 40, "No space left on device"),
    Dropped(1, "non-finite", 3),
    WorkerFailed(1, 7, "ValueError: bad", replaced=True),
    WorkerRestarted(1, 2, 3.5),
    WorkerSlowed(1, 4.5, True, 2.5),
    WorkersChanged(2, 6, 3.5, 0.25),
    WorkersKept(2, 0, "no such number", 4.5),
    Traffic([10, 20], [30, 40], [0.5, 0.75], [100], [0.125], [0.0625], [1.5, 2.5]),
    RunFinished(
        "epochs", 1.0, 2.0, 3.0, 30, 4, [10, 20], [2, 2], {0: 3, 1: 1}, {"pushed": 4, "dropped": {"a": 1}},
        5, 6, {"loss": 0.5}, None,
    ),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_comes_back_from_its_line(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event
    assert to_json(from_json(line)) == line


def test_every_kind_of_event_is_tested_here() -> None:
    assert {type(event) for event in EVENTS} == set(typing.get_args(Event))


WITH_FIELDS = [event for event in EVENTS if dataclasses.fields(event)]


@pytest.mark.parametrize("event", WITH_FIELDS, ids=lambda event: type(event).__name__)
def test_events_cannot_be_changed(event: Event) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, dataclasses.fields(event)[0].name, None)


def test_an_unknown_event_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown event 'Nap'; known are RunStarted, .*Traffic, RunFinished"
    ):
        from_json('{"event": "Nap"}')

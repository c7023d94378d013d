"""The agenda: order, ties, the clock."""

from __future__ import annotations

import math
import random

import pytest

from freewheel.errors import ConfigurationError
from freewheel.simulation import Agenda, Convoy


def test_events_come_by_time_then_priority_then_the_order_they_were_entered_in() -> None:
    agenda, seen = Agenda(), list[tuple[int, int, int]]()
    events = [(time, priority, copy) for time in range(5) for priority in (-1, 0, 3) for copy in range(4)]
    entered = [(time, priority) for time, priority, _ in events]
    random.Random(3).shuffle(entered)
    count: dict[tuple[int, int], int] = {}
    for time, priority in entered:
        copy = count[time, priority] = count.get((time, priority), -1) + 1
        agenda.at(time, lambda event=(time, priority, copy): seen.append(event), priority)  # type: ignore[misc]
    agenda.run()
    assert seen == events


def test_actions_are_never_compared() -> None:
    agenda, seen = Agenda(), list[complex]()
    for number in (3j, 1j, 2j):
        agenda.at(1.0, lambda number=number: seen.append(number))  # type: ignore[misc]
    agenda.run()
    assert seen == [3j, 1j, 2j]


def test_the_clock_shows_the_event_that_runs() -> None:
    agenda, times = Agenda(), list[float]()

    def again() -> None:
        times.append(agenda.now)
        if len(times) < 4:
            agenda.at(agenda.now + 0.5, again)

    agenda.at(1.0, again)
    agenda.run()
    assert times == [1.0, 1.5, 2.0, 2.5]
    assert agenda.now == 2.5


def test_an_event_entered_now_comes_after_those_that_wait_at_the_same_time() -> None:
    agenda, seen = Agenda(), list[str]()

    def first() -> None:
        seen.append("a")
        agenda.at(agenda.now, lambda: seen.append("c"))

    agenda.at(1.0, first)
    agenda.at(1.0, lambda: seen.append("b"))
    agenda.run()
    assert seen == ["a", "b", "c"]


def test_run_until_takes_that_time_in_and_leaves_the_rest() -> None:
    agenda, seen = Agenda(), list[float]()
    for time in (1.0, 2.0, 3.0):
        agenda.at(time, lambda time=time: seen.append(time))  # type: ignore[misc]
    agenda.run(until=2.0)
    assert (seen, agenda.now, len(agenda)) == ([1.0, 2.0], 2.0, 1)
    agenda.run(until=2.5)
    assert (agenda.now, len(agenda)) == (2.5, 1)
    agenda.run(until=1.0)
    assert agenda.now == 2.5
    agenda.run()
    assert (seen, agenda.now, len(agenda)) == ([1.0, 2.0, 3.0], 3.0, 0)


def test_pop_moves_the_clock_and_leaves_the_call_to_the_caller() -> None:
    agenda, seen = Agenda(), list[int]()
    agenda.at(4.0, lambda: seen.append(1))
    action = agenda.pop()
    assert (agenda.now, seen, len(agenda)) == (4.0, [], 0)
    action()
    assert seen == [1]
    with pytest.raises(IndexError):
        agenda.pop()


@pytest.mark.parametrize("time", [0.9, -1.0, math.nan, math.inf])
def test_a_time_that_never_comes_is_refused(time: float) -> None:
    agenda = Agenda()
    agenda.at(1.0, lambda: None)
    agenda.run()
    with pytest.raises(ConfigurationError, match=rf"`time` must be finite and not before now.*got {time}"):
        agenda.at(time, lambda: None)
    assert len(agenda) == 0


def test_a_convoy_keeps_the_order_of_what_comes_at_the_same_time() -> None:
    """An earlier time in between, as of a message that overtakes, begins another event."""
    agenda, seen = Agenda(), list[str]()
    convoy = Convoy(agenda)
    for time, what in ((2.0, "c"), (2.0, "d"), (1.0, "a"), (1.0, "b"), (2.0, "e")):
        convoy.at(time, lambda what=what: seen.append(what))  # type: ignore[misc]
    assert len(agenda) == 3
    agenda.run(until=1.0)
    assert seen == ["a", "b"]
    agenda.run()
    assert seen == ["a", "b", "c", "d", "e"]


def test_what_is_entered_while_a_convoy_unloads_comes_after_it() -> None:
    agenda, seen = Agenda(), list[str]()
    convoy = Convoy(agenda)

    def first() -> None:
        seen.append("a")
        convoy.at(agenda.now, lambda: seen.append("c"))
        convoy.at(agenda.now + 1.0, lambda: seen.append("e"))
        convoy.at(agenda.now, lambda: seen.append("d"))

    convoy.at(1.0, first)
    convoy.at(1.0, lambda: seen.append("b"))
    agenda.run()
    assert seen == ["a", "b", "c", "d", "e"]
    assert (agenda.now, len(agenda)) == (2.0, 0)


@pytest.mark.parametrize("time", [-1.0, 0.5, math.inf, math.nan])
def test_a_convoy_refuses_each_time_what_its_agenda_refuses(time: float) -> None:
    agenda = Agenda()
    convoy = Convoy(agenda)
    agenda.at(1.0, lambda: None)
    agenda.run()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="not before now"):
            convoy.at(time, lambda: None)

"""The agenda of a simulation: a heap of (time, priority, sequence, action) on a virtual clock."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from typing import final

from freewheel.errors import ConfigurationError

Action = Callable[[], object]
"""What happens at some time: anything that is called without arguments; what it returns is thrown away."""

_NEVER = math.inf


@final
class Agenda:
    """What happens when.

    Of events at the same time the lowest priority comes first, and of those the one entered first, so that
    the order never depends on what an action is. Entries are plain tuples, which compare in C; objects with
    an order of their own would cost several times as much. Nothing can be cancelled: an action that may be
    out of date by its time looks for itself.

    Attributes:
        now: the virtual clock, in seconds. It stands still while an action runs.

    Example:
        >>> agenda, seen = Agenda(), []
        >>> agenda.at(2.0, lambda: seen.append("late"))
        >>> agenda.at(1.0, lambda: seen.append("first"))
        >>> agenda.at(1.0, lambda: seen.append("second"))
        >>> agenda.at(1.0, lambda: seen.append("urgent"), priority=-1)
        >>> agenda.run(until=1.5)
        >>> seen, agenda.now, len(agenda)
        (['urgent', 'first', 'second'], 1.5, 1)

    References:
        The event queue of SimPy (simpy.core.Environment), less its processes and its kinds of events.
    """

    __slots__ = ("_heap", "_sequence", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, int, Action]] = []
        self._sequence = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, time: float, action: Action, priority: int = 0) -> None:
        """Enters an action.

        Args:
            time: when, in seconds of the virtual clock; not before `now`.
            action: what to call.
            priority: among events at the same time the lowest comes first.

        Raises:
            ConfigurationError: a time in the past, NaN or infinite.
        """
        if not self.now <= time < _NEVER:
            raise ConfigurationError(
                f"`time` must be finite and not before now ({self.now} s), got {time}; what never happens"
                " needs no event"
            )
        heappush(self._heap, (time, priority, next(self._sequence), action))

    def pop(self) -> Action:
        """Moves the clock to the next event, and gives its action, which the caller calls.

        Raises:
            IndexError: there is none; ``len(agenda)`` tells.
        """
        self.now, _, _, action = heappop(self._heap)
        return action

    def run(self, until: float = math.inf) -> None:
        """Runs every event up to a time, that time included, in order; the clock then shows that time.

        Args:
            until: in seconds; without it the agenda runs until it is empty, and the clock stays at the last
                event.
        """
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, _, action = heappop(heap)
            action()
        if self.now < until < math.inf:
            self.now = until


@final
class Convoy:
    """What comes over one connection, or out of one queue: what comes at the same time shares an event.

    A request that travels right behind a push arrives with it; taking both off the heap at once saves a third
    of a simulated step's events. Their order is kept; what others entered in between comes after them.

    Args:
        agenda: of the simulation.

    Example:
        >>> agenda, seen = Agenda(), []
        >>> convoy = Convoy(agenda)
        >>> for time, what in ((1.0, "push"), (1.0, "request"), (2.0, "late")):
        ...     convoy.at(time, lambda what=what: seen.append((agenda.now, what)))
        >>> len(agenda)
        2
        >>> agenda.run()
        >>> seen
        [(1.0, 'push'), (1.0, 'request'), (2.0, 'late')]
    """

    __slots__ = ("_agenda", "_cargo", "_time")

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._time = math.nan  # of what was entered last; NaN, which equals nothing: it is over
        self._cargo: list[Action] = []

    def at(self, time: float, action: Action) -> None:
        """Enters an action, as :meth:`Agenda.at`."""
        if time == self._time:
            self._cargo.append(action)
            return
        cargo = [action]
        self._agenda.at(time, partial(self._unload, cargo))
        self._time, self._cargo = time, cargo

    def ends_at(self, time: float) -> bool:
        """Whether what was entered last comes at this time, and has not come yet."""
        return time == self._time

    def _unload(self, cargo: list[Action]) -> None:
        if cargo is self._cargo:
            self._time = math.nan  # what is entered from now on comes after it
        for action in cargo:
            action()

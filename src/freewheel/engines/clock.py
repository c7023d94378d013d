"""The training clock: measured, or that of a simulation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from freewheel.simulation import Agenda


class Timekeeper(Protocol):
    """What a session asks for the time: a clock that runs, or the virtual one of a simulation."""

    def start(self) -> None:
        """Goes on."""

    def stop(self) -> None:
        """Stands still."""

    def seconds(self) -> float:
        """Training time so far."""
        ...

    def cpu_seconds(self) -> float:
        """Processor time while it ran; 0 where time is not spent but modelled."""
        ...


class Clock:
    """Training time: it stands still during evaluation. Processor time likewise.

    Args:
        processor_seconds: what has been used so far; the default is what this process has used.
    """

    def __init__(self, processor_seconds: Callable[[], float] = time.process_time) -> None:
        self._processor_seconds = processor_seconds
        self._seconds = 0.0
        self._cpu = 0.0
        self._began: float | None = None
        self._cpu_began = 0.0

    def start(self) -> None:
        """Goes on."""
        self._began, self._cpu_began = time.perf_counter(), self._processor_seconds()

    def stop(self) -> None:
        """Stands still."""
        if self._began is not None:
            self._seconds += time.perf_counter() - self._began
            self._cpu += self._processor_seconds() - self._cpu_began
            self._began = None

    def seconds(self) -> float:
        """Training time so far."""
        began = self._began
        return self._seconds if began is None else self._seconds + time.perf_counter() - began

    def cpu_seconds(self) -> float:
        """Processor time while the clock ran."""
        if self._began is None:
            return self._cpu
        return self._cpu + self._processor_seconds() - self._cpu_began


class VirtualClock:
    """The clock of an agenda, as a session reads it."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._ended_at = math.inf

    def end(self, seconds: float) -> None:
        """The run was over then, whatever else is on the agenda: a dead worker's return, a late copy."""
        self._ended_at = seconds

    def start(self) -> None:
        """Nothing: an agenda's clock moves only with its events."""

    def stop(self) -> None:
        """Nothing."""

    def seconds(self) -> float:
        """The time of the event under way, or of the end of the run."""
        return min(self._agenda.now, self._ended_at)

    def cpu_seconds(self) -> float:
        """Nothing is spent."""
        return 0.0

"""The training clock."""

from __future__ import annotations

import time
from typing import Protocol


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
    """Training time: it stands still during evaluation. Processor time likewise."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._cpu = 0.0
        self._began: float | None = None
        self._cpu_began = 0.0

    def start(self) -> None:
        """Goes on."""
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """Stands still."""
        if self._began is not None:
            self._seconds += time.perf_counter() - self._began
            self._cpu += time.process_time() - self._cpu_began
            self._began = None

    def seconds(self) -> float:
        """Training time so far."""
        began = self._began
        return self._seconds if began is None else self._seconds + time.perf_counter() - began

    def cpu_seconds(self) -> float:
        """Processor time of this process while the clock ran."""
        return self._cpu if self._began is None else self._cpu + time.process_time() - self._cpu_began

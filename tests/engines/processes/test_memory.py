"""What is said about the memory of a run on processes, and what saying it costs."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pytest

from freewheel.engines.processes import session
from freewheel.engines.processes.session import Memory

MIB = 2**20


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process numbers, in the order in which their memory is measured; each takes 20 ms."""
    found: list[int] = []

    def measure(process: Any) -> int:
        found.append(process.pid)
        ends = time.thread_time() + 0.02
        while time.thread_time() < ends:
            pass
        return 100 * MIB

    monkeypatch.setattr(session, "_proportional", measure)
    return found


def test_a_costly_measurement_is_not_repeated_soon(
    monkeypatch: pytest.MonkeyPatch, measurements: list[int]
) -> None:
    monkeypatch.setattr(session, "MEASURE_S", 0.0)
    memory = Memory()
    memory(), memory()
    assert len(measurements) == 1


def test_what_is_added_is_counted_without_a_measurement(
    monkeypatch: pytest.MonkeyPatch, measurements: list[int]
) -> None:
    own = 30 * MIB
    monkeypatch.setattr(session, "_own", lambda process: own)
    memory = Memory()
    before = memory()
    own += 50 * MIB
    assert memory() - before == 50 * MIB
    assert len(measurements) == 1


def test_new_processes_are_measured_at_once(measurements: list[int]) -> None:
    memory = Memory()
    memory()
    memory.watch([psutil.Process().ppid()])
    memory()
    mine = psutil.Process()
    assert measurements == [mine.pid, mine.pid, mine.ppid()]


def test_a_process_that_has_ended_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Any) -> Any:
        raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_info", gone)
    monkeypatch.setattr(psutil.Process, "memory_full_info", gone)
    assert Memory()() == 0

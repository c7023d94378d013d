"""Ctrl-C that waits while a message is handled, so that none is read or answered by half."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@final
class Interrupts:
    """While entered, Python's handlers of SIGINT and SIGTERM run outside of :meth:`held` only.

    Does nothing in a thread other than the main one, where no handler ever runs.
    """

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._held = False
        self._pending: int | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is inside is not interrupted; a signal that came meanwhile is handled at the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            number, self._pending = self._pending, None
            if number is not None:
                self._before[number](number, None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._pending = number
        else:
            self._before[number](number, frame)

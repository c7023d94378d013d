"""Ctrl-C between two steps: what a checkpoint holds must not be half a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """While it is entered, signals that a Python function handles wait until they are let through.

    A second signal is handled at once: somebody insists. In other threads than the main one, where no signal
    arrives, and for signals that no Python function handles, it does nothing.

    Args:
        wanted: False does nothing at all.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: tuple[int, FrameType | None] | None = None

    @property
    def waiting(self) -> bool:
        """A signal has come, and waits."""
        return self._waiting is not None

    def __enter__(self) -> Deferred:
        for number in SIGNALS if self._wanted else ():
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, signal.Handlers):
                self._handlers[number] = handler
                signal.signal(number, self._hold)
        return self

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self._waiting is not None:
            self._handlers[number](number, frame)
        self._waiting = (number, frame)

    def let_through(self) -> None:
        """Handles the signal that waits."""
        if self._waiting is not None:
            (number, frame), self._waiting = self._waiting, None
            self._handlers[number](number, frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if kind is None:
            self.let_through()

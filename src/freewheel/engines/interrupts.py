"""Ctrl-C that waits: no message may be read by half, and no checkpoint may hold half a step."""

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

    Does nothing in a thread other than the main one, where no handler ever runs, and leaves alone signals
    that no Python function handles.

    Args:
        wanted: False does nothing at all.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._held = self._insist = False
        self._waiting: tuple[int, FrameType | None] | None = None

    @property
    def waiting(self) -> bool:
        """A signal has come, and waits."""
        return self._waiting is not None

    def __enter__(self) -> Interrupts:
        for number in SIGNALS if self._wanted else ():
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, signal.Handlers):
                self._handlers[number] = handler
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    @contextmanager
    def held(self, insist: bool = False) -> Iterator[None]:
        """What is inside is not interrupted; a signal that came meanwhile is handled at the end.

        An error inside goes first: what waits is then forgotten.

        Args:
            insist: a second signal is handled at once.
        """
        before = self._held, self._insist
        self._held, self._insist = True, insist
        try:
            yield
        except BaseException:
            self._held, self._insist = before
            self._waiting = None
            raise
        self._held, self._insist = before
        if not self._held:
            self.let_through()

    def hold(self) -> None:
        """What follows is not interrupted, until :meth:`let_go`."""
        self._held, self._insist = True, False

    def let_go(self) -> None:
        """A signal that came since :meth:`hold` is handled now."""
        self._held = False
        self.let_through()

    def let_through(self) -> None:
        """Handles the signal that waits."""
        if self._waiting is not None:
            (number, frame), self._waiting = self._waiting, None
            self._handlers[number](number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._held or (self._insist and self._waiting is not None):
            self._handlers[number](number, frame)
        else:
            self._waiting = (number, frame)

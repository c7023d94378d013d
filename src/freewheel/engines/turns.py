"""Whose turn it is in a simulated run: what the gate is asked, and who waits for it."""

from __future__ import annotations

from typing import final

from freewheel.engines.fleet import Member
from freewheel.engines.session import Session
from freewheel.gates import NEVER_WAITED_FOR


@final
class Turns:
    """The progress of all workers, and those who may not begin yet.

    With a thousand workers a gate that looks at all of them is the dearest part of a step, so it is asked as
    seldom as its kind allows: not for those who are no further than somebody whom it would let through
    whoever was the slowest, and for those who wait for the slowest not before that one has moved, unless it
    waits itself.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._server = session.server
        self._method = session.job.method
        self._progress = [0] * session.job.setup.workers  # steps of each worker that the server has seen
        self._slowest = 0
        self._allowed = -1  # with so many steps nobody is too far ahead of the slowest
        self.waiting: list[Member] = []

    def may_start(self, member: Member) -> bool:
        """Whether the worker may begin its next step; if not, it waits."""
        method, progress, number = self._method, self._progress, member.number
        if method.gate.open and not method.rounds:
            return True
        seen = progress[number]
        # Its own steps count when they are begun, less those that the server need not have seen.
        own = max(seen, member.begun - method.in_flight)
        if own <= self._allowed:
            return True
        progress[number] = own
        may = self._session.may_start(number, progress)
        progress[number] = seen
        if not may:
            self.waiting.append(member)
        elif method.gate.slowest and not method.rounds and method.gate.may_start(0, (own, min(progress))):
            self._allowed = own  # the slowest may be this worker itself, by what the server has seen of it
        return may

    def seen(self, member: Member) -> None:
        """The server has seen one more step of the worker."""
        if self._progress[member.number] != NEVER_WAITED_FOR:
            self._progress[member.number] += 1

    def leave(self, member: Member) -> None:
        """Nobody waits for the worker any more."""
        self._progress[member.number] = NEVER_WAITED_FOR
        self._server.retire(member.number)

    def forget(self, member: Member) -> None:
        """The steps for which the worker waits will not be."""
        self.waiting = [waiting for waiting in self.waiting if waiting is not member]

    def join(self, member: Member) -> None:
        """The worker takes part again, no further behind than the slowest."""
        self._allowed = -1
        others = [done for done in self._progress if done != NEVER_WAITED_FOR]
        self._progress[member.number] = max(min(others, default=0), member.finished)
        self._server.readmit(member.number)

    def freed(self) -> list[Member]:
        """Those who may ask again, since what they waited for may have happened; in the order they came."""
        if not self.waiting:
            return []
        if self._method.rounds:
            if self._server.awaits_round(self.waiting[0].number):
                return []
        elif self._method.gate.slowest:
            slowest = min(self._progress)
            if slowest == self._slowest and not self._last_one_waits(slowest):
                return []
            self._slowest = slowest
        freed, self.waiting = self.waiting, []
        return freed

    def _last_one_waits(self, slowest: int) -> bool:
        """The one worker of whom the server has seen least waits itself, and so for others."""
        if self._progress.count(slowest) > 1:
            return False
        return any(self._progress[member.number] == slowest for member in self.waiting)

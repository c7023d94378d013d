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
    seldom as its kind allows: nobody has to be asked for behind whom somebody was let through, and those who
    wait for the slowest not before that one has moved.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._server = session.server
        self._method = session.job.method
        self._progress = [0] * session.job.setup.workers  # steps of each worker that the server has seen
        self._slowest = 0
        self._allowed = -1  # steps begun by the foremost worker that the gate has let through
        self.waiting: list[Member] = []

    def may_start(self, member: Member) -> bool:
        """Whether the worker may begin its next step; if not, it waits."""
        method, progress, number = self._method, self._progress, member.number
        if method.gate.open and not method.rounds:
            return True
        if member.begun <= self._allowed and method.gate.slowest:
            return True
        seen = progress[number]
        # Its own steps count when they are begun, less those that the server need not have seen.
        progress[number] = max(seen, member.begun - method.in_flight)
        may = self._session.may_start(number, progress)
        progress[number] = seen
        if not may:
            self.waiting.append(member)
        elif not method.rounds:
            self._allowed = max(self._allowed, member.begun)
        return may

    def seen(self, member: Member) -> None:
        """The server has seen one more step of the worker."""
        if self._progress[member.number] != NEVER_WAITED_FOR:
            self._progress[member.number] += 1

    def leave(self, member: Member) -> None:
        """Nobody waits for the worker any more."""
        self._progress[member.number] = NEVER_WAITED_FOR
        self._server.retire(member.number)

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
            if slowest == self._slowest:
                return []
            self._slowest = slowest
        freed, self.waiting = self.waiting, []
        return freed

"""The worker processes of a run, as the main process sees them: started, listened to, replaced, ended."""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, final

from freewheel.engines.processes import nursery
from freewheel.engines.processes import worker as worker_module
from freewheel.engines.processes.endings import death, hanging
from freewheel.engines.processes.messages import Line, Quit
from freewheel.engines.processes.parcel import Parcel
from freewheel.engines.processes.session import ProcessSession
from freewheel.errors import WorkerError

PATIENCE_S = 5.0  # for workers that are to end, before they are killed
DEAD_S = 0.5  # for those that have failed, and said so
SEND_S = 10.0  # for workers that do not read what they are sent


class Member(NamedTuple):
    """A worker, as the main process sees it."""

    place: worker_module.Place
    process: BaseProcess
    line: Line
    handle: int | None  # of the process, where the system has such: its number may be another's some day

    @property
    def worker(self) -> int:
        """Which worker it is."""
        return self.place.worker


@final
class Roster:
    """The present life of every worker.

    Args:
        session: of the run.
        numbers: descriptor of the queue that workers read batch numbers from.
        pin: bind each worker to cores of its own.

    Attributes:
        lines: to the workers, in their order.
        starting: workers whose process has not said a word yet.
        gone: those whose process has ended, and whose place nobody is to take.
    """

    def __init__(self, session: ProcessSession, numbers: int, pin: bool) -> None:
        self._session = session
        self._numbers = numbers
        self._pin = pin
        self._members: dict[int, Member] = {}
        self._first_lives: Sequence[int] = ()
        self._hung: dict[int, float] = {}  # who was killed for that, and after how many seconds
        self._selector = selectors.DefaultSelector()
        self._parcel: Parcel | None = None
        self.lines: list[Line] = []
        self.starting: set[int] = set()
        self.gone: set[int] = set()

    # --- hiring ---

    def hire(self, parcel: Parcel, first_lives: Sequence[int]) -> None:
        """Starts all workers; each will say when it is there.

        Args:
            parcel: what every process is given.
            first_lives: the incarnation that each worker begins with.
        """
        self._parcel, self._first_lives = parcel, first_lives
        for (worker, life), cores in zip(enumerate(first_lives), self._cores(), strict=False):
            member = self._started(worker_module.Place(worker, cores, life))
            self._members[worker] = member
            self.lines.append(member.line)
        self._count_memory()

    def replace(self, member: Member) -> None:
        """Starts another process in the place of one that was buried.

        Raises:
            OSError: the system has no room for it.
            EOFError: the server that processes are forked from has ended.
        """
        _end(self._members.pop(member.worker), DEAD_S)  # first: its descriptors may be needed
        new = self._started(replace(member.place, incarnation=member.place.incarnation + 1))
        self.gone.discard(member.worker)
        self._members[member.worker], self.lines[member.worker] = new, new.line
        self._count_memory()

    def is_first_life(self, member: Member) -> bool:
        """The run has begun, or gone on, with this process."""
        return member.place.incarnation == self._first_lives[member.worker]

    def _started(self, place: worker_module.Place) -> Member:
        assert self._parcel is not None
        nursery.prepare()  # it runs, unless something has ended it
        here, there = multiprocessing.Pipe()
        try:
            with there:
                process = nursery.started(
                    place.worker,
                    worker_module.main,
                    place,
                    there,
                    [nursery.Descriptor(descriptor) for descriptor in self._session.arena.descriptors],
                    nursery.Descriptor(self._numbers),
                    self._parcel,
                )
        except BaseException:
            here.close()
            raise
        member = Member(place, process, Line(here, SEND_S), _handle(process))
        self.starting.add(place.worker)
        self._selector.register(member.line, selectors.EVENT_READ, member)
        self._selector.register(process.sentinel, selectors.EVENT_READ, member)
        return member

    def _count_memory(self) -> None:
        pids = [member.process.pid for member in self._members.values()]
        self._session.memory.watch([pid for pid in pids if pid is not None])

    def _cores(self) -> Iterator[frozenset[int]]:
        if not self._pin:
            while True:
                yield frozenset()
        cores = sorted(os.sched_getaffinity(0))
        each = self._session.job.setup.intra_op_threads
        first = 0
        while True:
            yield frozenset(cores[(first + i) % len(cores)] for i in range(each))
            first += each

    # --- talking ---

    def send(self, worker: int, message: Any) -> None:
        """Sends a message; one to a worker that has just died is lost, and its death is heard of soon."""
        with suppress(OSError):
            self.lines[worker].send(message)

    def who_spoke(self, timeout_s: float) -> Iterator[tuple[Member, bool]]:
        """Workers that have sent a message (True), or whose process has ended."""
        for key, _ in self._selector.select(timeout_s):
            member: Member = key.data
            if self._members.get(member.worker) is member and member.worker not in self.gone:
                yield member, key.fileobj is member.line  # else it has been replaced meanwhile

    def receive(self, member: Member, spoke: bool) -> Any:
        """A worker's next message; None if only a part of it is here yet.

        Raises:
            WorkerError: its process has ended, and it has left no message.
        """
        try:
            message = member.line.arrived()
        except (EOFError, OSError):
            raise self._died(member) from None
        if message is None and not spoke:
            raise self._died(member)
        return message

    def _died(self, member: Member) -> WorkerError:
        """The error of a worker whose process has ended without a word."""
        process = member.process
        process.join(PATIENCE_S)
        _kill(member)  # its line is closed, or the server that it was forked from has ended, but it may live
        process.join()
        worker, step = member.worker, self._session.board.steps[member.worker]
        passed = self._hung.get(worker)
        if passed is None:
            return death(worker, step, process)
        return hanging(worker, step, passed, worker in self.starting)

    # --- ends ---

    def kill(self, worker: int, passed_s: float) -> None:
        """Kills a worker that hangs, for so many seconds; its death is heard of soon."""
        member = self._members[worker]
        if member.process.exitcode is None:
            self._hung[worker] = passed_s
            _kill(member)

    def bury(self, member: Member) -> None:
        """Nobody listens to it any more."""
        self.gone.add(member.worker)
        self._hung.pop(member.worker, None)
        self._selector.unregister(member.line)
        self._selector.unregister(member.process.sentinel)

    def dismiss(self, standing: set[int]) -> None:
        """Ends every process: those that stand still are told so."""
        for member in self._members.values():
            if member.worker in standing:
                self.send(member.worker, Quit())
            elif member.worker not in self.gone:
                _kill(member)
        ends = time.monotonic() + PATIENCE_S
        for member in self._members.values():
            _end(member, max(0.0, ends - time.monotonic()))

    def close(self) -> None:
        """Lets go of what is open; every process has ended."""
        self._selector.close()


def _handle(process: BaseProcess) -> int | None:
    assert process.pid is not None
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not on this system; it has ended
        return None


def _kill(member: Member) -> None:
    """Kills a process, if it lives."""
    if member.handle is None:
        member.process.kill()
        return
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(member.handle, signal.SIGKILL)


def _end(member: Member, patience_s: float = PATIENCE_S) -> None:
    """Waits for a process that is about to end, and lets go of it."""
    member.process.join(patience_s)
    _kill(member)
    member.process.join()
    member.process.close()
    member.line.close()
    if member.handle is not None:
        os.close(member.handle)

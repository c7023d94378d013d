"""The main process's side of a run on processes.

It starts the workers, opens segments, answers what they ask, watches over their lives, and measures the model
while they stand still. All that workers wait for is a message of this loop.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, final

from freewheel.engines.base import intra_op
from freewheel.engines.plan import Segment
from freewheel.engines.processes import nursery
from freewheel.engines.processes import worker as worker_module
from freewheel.engines.processes.batches import fetched_by_workers
from freewheel.engines.processes.desk import Desk
from freewheel.engines.processes.endings import death, explained
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.processes.lease_queue import LeaseQueue
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import (
    Failed,
    Flush,
    Flushed,
    Line,
    Quit,
    Ready,
    Report,
    Standing,
    Work,
)
from freewheel.engines.processes.parcel import Parcel, packed
from freewheel.engines.processes.session import ProcessSession
from freewheel.errors import WorkerError
from freewheel.job import Job

POLL_S = 0.05  # how often the main process looks at the clock while workers train
PATIENCE_S = 5.0  # for workers that are to end, before they are killed


class Member(NamedTuple):
    """A worker, as the main process sees it."""

    worker: int
    process: BaseProcess
    line: Line


@final
class Crew:
    """The workers of one run.

    Args:
        session: of the run.
        pin: bind each worker to cores of its own.
    """

    def __init__(self, session: ProcessSession, pin: bool) -> None:
        self.session = session
        self.workers = session.job.setup.workers
        self.pin = pin
        self.members: list[Member] = []
        self.standing: set[int] = set()
        self.gone: set[int] = set()  # their processes have ended
        self.flushed: dict[int, bool] = {}  # answers: whether a worker had anything to push
        self.under_way = False
        self.queue = LeaseQueue(self.workers)
        self.selector = selectors.DefaultSelector()
        self.interrupts = Interrupts()
        self.desk = Desk(session, self.interrupts)

    # --- the run ---

    def run(self) -> None:
        """Trains, whatever happens; afterwards no process is left."""
        with ExitStack() as stack:
            stack.callback(self._close)
            self._hire()
            with self.interrupts:
                self._run()

    def _run(self) -> None:
        session = self.session
        try:
            try:
                session.record.announce()
                self._await_standing()
                session.arena.close_descriptors()
                self._train()
            except KeyboardInterrupt:
                session.reason = "interrupted"
                self._halt()
                session.measure_what_there_is()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            with suppress(Exception):
                self._halt(PATIENCE_S)
            session.fail(error)
            raise

    def _train(self) -> None:
        session = self.session
        for segment in session.segments():
            with intra_op(session.job.setup.intra_op_threads):  # updates are applied as on a worker
                with self.interrupts.held():  # a worker without its order would never stand still again
                    self._open(segment)
                self._await_standing()
            self._close_segment()
            session.out_of_time()  # a segment may be over before anybody has looked at the clock
            session.settle(final=segment.last or session.reason is not None)
            session.evaluate()
            if session.reason is not None:
                break
        session.end()

    def _open(self, segment: Segment) -> None:
        session = self.session
        self.desk.open(segment)
        self.standing.clear()
        if self.desk.queued:
            assert segment.limit is not None
            self.queue.open(segment.first, segment.limit)
        session.clock.start()
        work = Work(segment.first, segment.limit, time.perf_counter() - session.clock.seconds())
        self.under_way = True
        for member in self.members:
            self._send(member, work)

    def _close_segment(self) -> None:
        self.session.stop_clock()
        self.under_way = False
        self.queue.clear()

    # --- hiring ---

    def _hire(self) -> None:
        """Starts the workers; before that, everything that they need is shared or pickled."""
        session, job = self.session, self.session.job
        session.parameters.bind(job.module)
        parcel = self._parcel(job)
        for worker, cores in zip(range(self.workers), self._cores(), strict=False):
            here, there = multiprocessing.Pipe()
            with there:
                process = nursery.started(
                    worker,
                    worker_module.main,
                    worker_module.Place(worker, cores),
                    there,
                    [nursery.Descriptor(descriptor) for descriptor in session.arena.descriptors],
                    nursery.Descriptor(self.queue.reader),
                    parcel,
                )
            self._welcome(Member(worker, process, Line(here)))
        pids = [member.process.pid for member in self.members]
        session.memory.watch([pid for pid in pids if pid is not None])

    def _welcome(self, member: Member) -> None:
        self.members.append(member)
        self.desk.lines.append(member.line)
        self.selector.register(member.line, selectors.EVENT_READ, member)
        self.selector.register(member.process.sentinel, selectors.EVENT_READ, member)
        if self.session.job.method.exchange is not None:
            self.session.links.append(_RemoteLink(self, member))  # type: ignore[arg-type]  # all that settling asks of one

    def _parcel(self, job: Job) -> Parcel:
        session = self.session
        if self.desk.serves:
            keeps = job.method.keeps_pulled
            self.desk.mailboxes = Mailbox.within(session.arena, session.parameters, self.workers, keeps)
        kit = {
            "module": job.module,
            "task": job.task,
            "equipment": session.equipment,
            "server": session.server,
            "source": job.source if fetched_by_workers(job.source) else None,
            "board": session.board,
            "mailboxes": self.desk.mailboxes,
            "gated": self.desk.gated,
            "environment": dict(os.environ),
        }
        return packed(kit, session.arena)

    def _cores(self) -> Iterator[frozenset[int]]:
        if not self.pin:
            while True:
                yield frozenset()
        cores = sorted(os.sched_getaffinity(0))
        each = self.session.job.setup.intra_op_threads
        first = 0
        while True:
            yield frozenset(cores[(first + i) % len(cores)] for i in range(each))
            first += each

    # --- listening ---

    def _await_standing(self) -> None:
        """Handles what workers say until all stand still, looking at the clock meanwhile."""
        session = self.session
        while len(self.standing) < self.workers:
            self._listen(POLL_S)
            if self.under_way:
                self.queue.feed()
                session.record.tick()
                if session.out_of_time():
                    self._stop()

    def _listen(self, timeout_s: float) -> None:
        """Handles one message of everybody who has sent any, or learns of a death."""
        for key, _ in self.selector.select(timeout_s):
            member: Member = key.data
            if member.worker in self.gone:
                continue
            with self.interrupts.held():
                message = self._receive(member, key.fileobj is member.line)
                self._handle(member, message)
            self.desk.hand_out()  # data is read where Ctrl-C can end that

    def _receive(self, member: Member, spoke: bool) -> Any:
        """A worker's next message.

        Raises:
            WorkerError: its process has ended, and it has left no message.
        """
        if not spoke and not member.line.waiting():
            raise self._died(member)
        try:
            return member.line.receive()
        except (EOFError, OSError):
            raise self._died(member) from None

    def _handle(self, member: Member, message: Any) -> None:
        worker = member.worker
        match message:
            case Report(rows, entry):
                self.session.record.queue.extend(rows)
                if entry is not None:
                    slot = self.session.server.book.slots[worker]
                    slot.pushed, slot.released, slot.counts = entry
            case Ready():
                self.standing.add(worker)
            case Standing(buffers):
                self.session.buffers.update(buffers)
                self.standing.add(worker)
                self.desk.retire(worker)
            case Flushed(found):
                self.flushed[worker] = found
            case Failed():
                self._bury(member)
                raise explained(worker, message)
            case _:
                self.desk.serve(worker, message)

    def _died(self, member: Member) -> WorkerError:
        """The error of a worker whose process has ended without a word."""
        process = member.process
        process.join(PATIENCE_S)
        if process.exitcode is None:  # its line is closed, but it lives
            process.kill()
            process.join()
        self._bury(member)
        return death(member.worker, self.session.board.steps[member.worker], process)

    def _bury(self, member: Member) -> None:
        self.gone.add(member.worker)
        self.selector.unregister(member.line)
        self.selector.unregister(member.process.sentinel)

    def _send(self, member: Member, message: Any) -> None:
        """Sends a message; one to a worker that has just died is lost, and its death is heard of soon."""
        with suppress(ConnectionError):
            member.line.send(message)

    # --- settling ---

    def flush(self, member: Member, final: bool) -> bool:
        """Has a worker push what it holds back; whether there was anything."""
        self._send(member, Flush(final))
        while member.worker not in self.flushed:
            self._listen(POLL_S)
        return self.flushed.pop(member.worker)

    # --- the end ---

    def _stop(self) -> None:
        self.session.board.stop()
        self.queue.stop()
        self.desk.dismiss()

    def _halt(self, patience_s: float | None = None) -> None:
        """Lets every worker finish its step.

        Args:
            patience_s: how long to wait for that; None for as long as it takes. Then nobody listens to what
                else goes wrong.
        """
        self._stop()
        ends = None if patience_s is None else time.monotonic() + patience_s
        while len(self.standing | self.gone) < self.workers:
            if ends is not None and time.monotonic() > ends:
                break
            try:
                self._listen(POLL_S)
            except Exception:
                if ends is None:
                    raise
                self.desk.dismiss()
        self.session.stop_clock()
        self.under_way = False

    def _close(self) -> None:
        """Ends every process, and lets go of all that was open."""
        try:
            self._dismiss()
        finally:
            self.selector.close()
            self.queue.close()
            self.session.close()

    def _dismiss(self) -> None:
        for member in self.members:
            if member.worker in self.standing:
                self._send(member, Quit())
            elif member.worker not in self.gone:
                member.process.kill()
        ends = time.monotonic() + PATIENCE_S
        for member in self.members:
            member.process.join(max(0.0, ends - time.monotonic()))
            if member.process.exitcode is None:
                member.process.kill()
                member.process.join()
            member.process.close()
            member.line.close()


@final
class _RemoteLink:
    """A worker's link, as far as settling needs one."""

    def __init__(self, crew: Crew, member: Member) -> None:
        self._crew = crew
        self._member = member

    def flush(self, final: bool) -> bool:
        """Pushes what is left when everybody stands still; whether there was anything."""
        return self._crew.flush(self._member, final)

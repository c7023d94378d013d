"""The main process's side of a run on processes.

It starts the workers, opens segments, answers what they ask, watches over their lives, and measures the model
while they stand still. All that workers wait for is a message of this loop.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import selectors
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, final

from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree
from freewheel.engines.base import intra_op
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.plan import Segment, begun
from freewheel.engines.processes import nursery
from freewheel.engines.processes import worker as worker_module
from freewheel.engines.processes.batches import fetched_by_workers
from freewheel.engines.processes.board import PAUSE
from freewheel.engines.processes.desk import Desk
from freewheel.engines.processes.endings import death, explained, hanging
from freewheel.engines.processes.lease_queue import LeaseQueue
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import (
    Deposit,
    Entry,
    Failed,
    Flush,
    Flushed,
    Line,
    Quit,
    Ready,
    Report,
    Show,
    Standing,
    TakeBack,
    Work,
)
from freewheel.engines.processes.parcel import Parcel, packed
from freewheel.engines.processes.session import Left, ProcessSession
from freewheel.engines.supervisor import Supervisor, Watch
from freewheel.errors import WorkerError
from freewheel.events import WorkerFailed, WorkerRestarted
from freewheel.job import Job

POLL_S = 0.05  # how often the main process looks at the clock while workers train
PATIENCE_S = 5.0  # for workers that are to end, before they are killed


class Member(NamedTuple):
    """A worker, as the main process sees it."""

    place: worker_module.Place
    process: BaseProcess
    line: Line

    @property
    def worker(self) -> int:
        """Which worker it is."""
        return self.place.worker


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
        self.gone: set[int] = set()  # their processes have ended, and nobody is to take their place
        self.flushed: dict[int, bool] = {}  # answers: whether a worker had anything to push
        self.under_way = False
        self.starting: set[int] = set()  # processes that have not said a word yet
        self.awaited: set[int] = set()  # who is pushing what it holds back
        self.hung: dict[int, float] = {}  # who was killed for that, and after how many seconds
        self.handed = Left([], 0)  # batches that were handed out in this segment: these, and all that follow
        self.last: Cut | None = None  # the state of the run that a checkpoint at its end would hold
        self.booked = [0] * self.workers  # steps of each worker that were taken up from the journal
        self.lives = [0] * self.workers  # steps that each worker had finished when it was started
        self.books: dict[int, Entry] = {}  # what earlier lives of workers had done
        self.done: list[int] = []  # numbers of the batches that were used in this segment
        self.lost = False  # a worker has died in this segment
        self.segment = Segment(0, 0)
        self.began = [0] * self.workers  # steps of each worker when the segment began
        supervision = session.job.supervision
        self.supervisor = Supervisor(supervision)
        self.watch = Watch(session.board, self.workers, supervision.step_timeout)
        self.queue = LeaseQueue(self.workers)
        self.selector = selectors.DefaultSelector()
        self.interrupts = Interrupts()
        self.desk = Desk(session, self.interrupts)

    # --- the run ---

    def run(self) -> None:
        """Trains, whatever happens; afterwards no process is left."""
        with ExitStack() as stack:
            stack.callback(self._close)
            place = self.session.resume()
            self._hire(goes_on=place is not None)
            with self.interrupts:
                self._run(place)

    def _run(self, place: Tree | None) -> None:
        session = self.session
        try:
            try:
                session.record.announce()
                self._await_standing()
                session.deposits = {}
                self._train(place)
            except KeyboardInterrupt:
                session.reason = "interrupted"
                if self.under_way and not session.board.stopping:
                    self.last = self._cut()
                self._halt()
                session.save(self.last)
                session.measure_what_there_is()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            with suppress(Exception):
                self._halt(PATIENCE_S)
            session.fail(error)
            raise

    def _train(self, place: Tree | None) -> None:
        session = self.session
        for segment in session.segments(None if place is None else begun(place)):
            with intra_op(session.job.setup.intra_op_threads):  # updates are applied as on a worker
                with self.interrupts.held():  # a worker without its order would never stand still again
                    self._open(segment, place)
                place = None
                self._await_standing()
                self._make_up()
            session.stop_clock()
            if not session.board.stopping:
                self.last = self._cut()
            self._close_segment()
            session.out_of_time()  # a segment may be over before anybody has looked at the clock
            session.settle(final=segment.last or session.reason is not None)
            session.evaluate()
            if session.reason is not None:
                break
        session.save(self.last)
        session.end()

    def _open(self, segment: Segment, place: Tree | None) -> None:
        """Everybody begins the segment, or goes on where the checkpoint was taken in it."""
        session = self.session
        self.segment, self.lost, self.done = segment, False, []
        self.began = list(session.board.steps) if place is None else place["began"]
        if place is not None:
            self.desk.put_back(place)
        self.desk.open(segment, readmit=place is None or segment.limit != place["limit"])
        if self.desk.queued:
            left = Left([], segment.first)
            if place is not None:
                state = session.job.source.state()
                left = Left(state["returned"], state["next"])
            self._hand_out(left)
        session.clock.start()
        self._set_going(asks=place is not None and self.desk.serves)

    def _hand_out(self, left: Left) -> None:
        """Lets the workers take these batches."""
        assert self.segment.limit is not None
        self.handed = left
        following = range(left.following, self.segment.limit)
        self.queue.open([*left.numbers, *following] if left.numbers else following)

    def _set_going(self, asks: bool = False) -> None:
        """Has everybody begin, but those who are not there yet: they will when they are."""
        self.under_way = True
        going = [member for member in self.members if member.worker not in self.starting]
        self.standing -= {member.worker for member in going}
        for member in going:
            self._order(member, asks)

    def _order(self, member: Member, asks: bool) -> None:
        segment, worker = self.segment, member.worker
        began = time.perf_counter() - self.session.clock.seconds()
        step = self.session.board.steps[worker] - self.began[worker]
        self.watch.rest(worker)
        self._send(member, Work(segment.first, segment.limit, began, step, asks))

    def _make_up(self) -> None:
        """Has the batches used that workers had in hand when they died, and whatever else was not used."""
        while self.lost and not self.session.board.stopping and self.desk.queued:
            self.lost = False
            left = self._left()
            if not left.numbers and left.following == self.segment.limit:
                return
            with self.interrupts.held():
                self.desk.open(self.segment)
                self.queue.clear()
                self._hand_out(left)
                self.done = []
                self._set_going()
            self._await_standing()

    def _left(self) -> Left:
        """The batches of the segment that nobody has finished yet."""
        done = set(self.done)
        following = max(self.handed.following, max(done, default=-1) + 1)
        numbers = [*self.handed.numbers, *range(self.handed.following, following)]
        return Left([number for number in numbers if number not in done], following)

    def _close_segment(self) -> None:
        self.under_way = False
        self.queue.clear()

    # --- checkpoints ---

    def _cut(self) -> Cut | None:
        """The state of the run at a moment at which every worker waits between two steps, or stands still.

        Nobody waits for longer than the others take to finish their step, and for the copy. None if no
        checkpoints are written, or if a worker is missing.
        """
        session, board = self.session, self.session.board
        if session.saver is None or self.starting or self.gone:
            return None
        if board.sign != PAUSE:  # else it was interrupted, and is taken up again
            with self.interrupts.held():
                session.deposits = {}
                board.pause()
                self.desk.pause()
                for worker in self.standing:
                    self._send(self.members[worker], Show())
        while not self._all_have_deposited():
            self._listen(POLL_S)
            self._look_for_hanging()
            self.queue.feed()
        with self.interrupts.held():
            state = None if self.starting or self.gone else self._taken()
            board.go_on()
            self.desk.go_on()
        return state

    def _all_have_deposited(self) -> bool:
        there = set(range(self.workers)) - self.starting - self.gone
        return there <= self.session.deposits.keys()

    def _taken(self) -> Cut | None:
        session = self.session
        self._collect()
        session.left = self._left() if self.desk.queued else None
        return session.cut({**self.segment._asdict(), **self.desk.place(), "began": list(self.began)})

    # --- hiring ---

    def _hire(self, goes_on: bool) -> None:
        """Starts the workers; before that, everything that they need is shared or pickled.

        Args:
            goes_on: from a checkpoint: the server must not take the workers for those that it has known.
        """
        session, job = self.session, self.session.job
        slots = session.server.book.slots
        self.first_lives = [slot.incarnation + goes_on for slot in slots]
        self.lives, self.booked = list(session.board.steps), list(session.board.steps)
        if not self.desk.serves:
            self.books = {w: Entry(s.pushed, s.released, Counter(s.counts)) for w, s in enumerate(slots)}
        session.parameters.bind(job.module)
        self.parcel = self._parcel(job)
        for worker, cores in zip(range(self.workers), self._cores(), strict=False):
            member = self._started(worker_module.Place(worker, cores, self.first_lives[worker]))
            self.members.append(member)
            self.desk.lines.append(member.line)
            if job.method.exchange is not None:
                session.links.append(_RemoteLink(self, worker))  # type: ignore[arg-type]  # all that settling asks of one
        self._count_memory()

    def _started(self, place: worker_module.Place) -> Member:
        """A new process, which is listened to; it will say when it is there."""
        here, there = multiprocessing.Pipe()
        with there:
            process = nursery.started(
                place.worker,
                worker_module.main,
                place,
                there,
                [nursery.Descriptor(descriptor) for descriptor in self.session.arena.descriptors],
                nursery.Descriptor(self.queue.reader),
                self.parcel,
            )
        member = Member(place, process, Line(here))
        self.starting.add(place.worker)
        self.selector.register(member.line, selectors.EVENT_READ, member)
        self.selector.register(process.sentinel, selectors.EVENT_READ, member)
        return member

    def _count_memory(self) -> None:
        pids = [member.process.pid for member in self.members]
        self.session.memory.watch([pid for pid in pids if pid is not None])

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
            "journal": session.journal,
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
        while len(self.standing | self.gone) < self.workers:
            self._listen(POLL_S)
            self._look_for_hanging()
            if self.under_way:
                self.queue.feed()
                self._collect()
                session.record.tick()
                self._look_up()
        self._collect()

    def _look_up(self) -> None:
        """Whether time is up, or a checkpoint is due."""
        session = self.session
        if session.board.stopping:
            return
        if session.out_of_time():
            self.last = self._cut()
            self._stop()
        elif session.wants_cut():
            state = self._cut()
            session.save(state)

    def _collect(self) -> None:
        """Takes up what the workers have finished."""
        for worker in range(self.workers):
            self._take_up(worker)

    def _take_up(self, worker: int) -> None:
        rows = list(self.session.journal.collect(worker))
        self.session.record.queue.extend(rows)
        if rows:
            self.booked[worker] = rows[-1][1] + 1
        if self.desk.queued:
            self.done += [row[2] for row in rows]

    def _listen(self, timeout_s: float) -> None:
        """Handles one message of everybody who has sent any, or learns of a death."""
        for key, _ in self.selector.select(timeout_s):
            member: Member = key.data
            if self.members[member.worker] is not member or member.worker in self.gone:
                continue  # it has been replaced meanwhile
            with self.interrupts.held():
                try:
                    message = self._receive(member, key.fileobj is member.line)
                except WorkerError as error:
                    self._lose(member, error)
                    continue
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
            case Report(entry):
                self._enter(worker, entry)
            case Ready():
                self._take_on(member)
            case Standing(buffers):
                self.session.buffers.update(buffers)
                self.standing.add(worker)
                self.desk.retire(worker)
                if self.session.board.sign == PAUSE:
                    self._send(member, Show())
            case Deposit(state):
                self.session.deposits[worker] = state
                if worker not in self.standing:
                    self.desk.paused.add(worker)
            case Flushed(found):
                self.flushed[worker] = found
            case Failed():
                self._lose(member, explained(worker, message))
            case _:
                self.desk.serve(worker, message)

    def _died(self, member: Member) -> WorkerError:
        """The error of a worker whose process has ended without a word."""
        process = member.process
        process.join(PATIENCE_S)
        if process.exitcode is None:  # its line is closed, but it lives
            process.kill()
            process.join()
        worker, step = member.worker, self.session.board.steps[member.worker]
        passed = self.hung.pop(worker, None)
        return death(worker, step, process) if passed is None else hanging(worker, step, passed)

    # --- failures ---

    def _lose(self, member: Member, error: BaseException) -> None:
        """A worker has failed: another takes its place, or the run ends.

        Raises:
            BaseException: the error, if it is not to be replaced.
        """
        worker, board = member.worker, self.session.board
        self._bury(member)
        if worker in self.starting and member.place.incarnation == self.first_lives[worker]:
            raise error  # nobody has ever been there
        batch = board.batch[worker] if self.under_way and worker not in self.standing else None
        verdict = self.supervisor.judge(worker, error, batch, board.steps[worker] > self.lives[worker])
        if not verdict.replace:
            if verdict.note:
                error.add_note(f"freewheel: {verdict.note}; it was not replaced again")
            raise error
        goes_on = not board.stopping
        self.session.record.emit(WorkerFailed(worker, board.steps[worker], _reason(error), goes_on))
        self._settle_accounts(worker)
        self.standing.discard(worker)
        self.starting.discard(worker)
        self.session.deposits.pop(worker, None)
        if worker in self.awaited:  # what it was to push is lost with it
            self.flushed[worker] = False
        if goes_on:
            self._replace(member)

    def _settle_accounts(self, worker: int) -> None:
        """Books what the dead worker has done, and takes back what it had in hand."""
        session, board = self.session, self.session.board
        self.lost = True
        self._take_up(worker)
        board.steps[worker] = max(board.steps[worker], self.booked[worker])  # it may have died in between
        receipt = self.desk.forget(worker)
        if receipt is not None:
            number = board.batch[worker]
            row = (worker, board.steps[worker], number, self._samples(number), math.nan, receipt.staleness)
            session.record.queue.append((*row, session.clock.seconds()))
            board.steps[worker] += 1
        slot = session.server.book.slots[worker]
        if not self.desk.serves:  # its page of the book ends where it last told of it
            unknown = board.versions[worker] - slot.counts["applied"]
            slot.counts["applied"] += unknown
            slot.pushed += unknown
            self.books[worker] = Entry(slot.pushed, slot.released, Counter(slot.counts))

    def _samples(self, number: int) -> int:
        """Examples of the batch with this number, as far as the source knows."""
        source = self.session.job.source
        before, upto = source.samples_before(number), source.samples_before(number + 1)
        return source.batch_size if before is None or upto is None else upto - before

    def _enter(self, worker: int, entry: Entry) -> None:
        """What a worker's page of the book says, with those of its earlier lives."""
        before = self.books.get(worker, Entry(0, 0, Counter()))
        slot = self.session.server.book.slots[worker]
        slot.pushed, slot.released = before.pushed + entry.pushed, before.released + entry.released
        slot.counts = before.counts + entry.counts

    def _replace(self, member: Member) -> None:
        worker = member.worker
        if self.under_way and self.desk.queued:
            self.queue.replaced()
        place = replace(member.place, incarnation=member.place.incarnation + 1)
        self.lives[worker] = self.session.board.steps[worker]
        self.gone.discard(worker)
        new = self._started(place)
        self.members[worker], self.desk.lines[worker] = new, new.line
        self._count_memory()
        _end(member)

    def _take_on(self, member: Member) -> None:
        """A worker is there."""
        worker, incarnation = member.worker, member.place.incarnation
        self.starting.discard(worker)
        if incarnation == self.first_lives[worker]:
            if worker in self.session.deposits:  # of the checkpoint that the run goes on from
                self._send(member, TakeBack(self.session.deposits[worker]))
        else:
            self.session.record.emit(WorkerRestarted(worker, incarnation, self.session.clock.seconds()))
        if self.under_way and not self.session.board.stopping:
            self._order(member, asks=self.desk.serves)
        else:
            self.standing.add(worker)

    def _look_for_hanging(self) -> None:
        """Kills workers that have been in one step for too long; their death is heard of soon."""
        self.watch.begin()
        resting = (self.standing - self.awaited) | self.gone | self.starting
        for member in self.members:
            worker = member.worker
            if worker in resting or self.desk.waits(worker):
                self.watch.rest(worker)
                continue
            passed = self.watch.look(worker)
            if passed is not None and member.process.exitcode is None:
                self.hung[worker] = passed
                self.watch.rest(worker)
                member.process.kill()

    def _bury(self, member: Member) -> None:
        self.gone.add(member.worker)
        self.selector.unregister(member.line)
        self.selector.unregister(member.process.sentinel)

    def _send(self, member: Member, message: Any) -> None:
        """Sends a message; one to a worker that has just died is lost, and its death is heard of soon."""
        with suppress(ConnectionError):
            member.line.send(message)

    # --- settling ---

    def flush(self, worker: int, final: bool) -> bool:
        """Has a worker push what it holds back; whether there was anything."""
        if worker in self.starting or worker in self.gone:
            return False
        self.awaited.add(worker)
        self.watch.rest(worker)
        self._send(self.members[worker], Flush(final))
        while worker not in self.flushed:
            self._listen(POLL_S)
            self._look_for_hanging()
        self.awaited.discard(worker)
        return self.flushed.pop(worker)

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
                self._look_for_hanging()
            except Exception:
                if ends is None:
                    raise
                self.desk.dismiss()
        self._collect()
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
            _end(member, max(0.0, ends - time.monotonic()))


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, WorkerError) else f"{type(error).__name__}: {error}"


def _end(member: Member, patience_s: float = PATIENCE_S) -> None:
    """Waits for a process that is about to end, and lets go of it."""
    member.process.join(patience_s)
    if member.process.exitcode is None:
        member.process.kill()
        member.process.join()
    member.process.close()
    member.line.close()


@final
class _RemoteLink:
    """A worker's link, as far as settling needs one."""

    def __init__(self, crew: Crew, worker: int) -> None:
        self._crew = crew
        self._worker = worker

    def flush(self, final: bool) -> bool:
        """Pushes what is left when everybody stands still; whether there was anything."""
        return self._crew.flush(self._worker, final)

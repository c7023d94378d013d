"""The main process's side of a run on processes.

It opens segments, answers what workers ask, watches over their lives, and measures the model while they stand
still. All that workers wait for is a message of this loop.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any, final

from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree
from freewheel.engines.base import intra_op
from freewheel.engines.changes import Change, change
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.plan import Segment, begun
from freewheel.engines.processes.accounts import Accounts
from freewheel.engines.processes.batches import fetched_by_workers
from freewheel.engines.processes.board import PAUSE
from freewheel.engines.processes.desk import Desk
from freewheel.engines.processes.endings import explained
from freewheel.engines.processes.lease_queue import LeaseQueue
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import (
    Deposit,
    Failed,
    Flush,
    Flushed,
    Ready,
    Report,
    Show,
    Standing,
    TakeBack,
    Work,
)
from freewheel.engines.processes.parcel import Parcel, packed
from freewheel.engines.processes.roster import Member, Roster
from freewheel.engines.processes.session import Left, ProcessSession
from freewheel.engines.processes.stragglers import Stragglers
from freewheel.engines.supervisor import Supervisor, Watch, told_of
from freewheel.errors import WorkerError
from freewheel.events import WorkerFailed, WorkerRestarted

POLL_S = 0.05  # how often the main process looks at the clock while workers train
PATIENCE_S = 5.0  # for workers that are to finish their step after an error


@final
class Crew:
    """The workers of one run, or of as much of it as has the same number of them.

    Args:
        session: of the run.
        pin: bind each worker to cores of its own.
        supervisor: decides what becomes of workers that fail.
        interrupts: signals that wait.
    """

    def __init__(
        self, session: ProcessSession, pin: bool, supervisor: Supervisor, interrupts: Interrupts
    ) -> None:
        self.session = session
        self.workers = session.job.setup.workers
        self.supervisor = supervisor
        self.interrupts = interrupts
        self.place: Tree | None = None  # where a run that goes on was
        self.change: Change | None = None  # that this crew is there for
        self.wanted: int | None = None  # another number of workers
        self.standing: set[int] = set()
        self.flushed: dict[int, bool] = {}  # answers: whether a worker had anything to push
        self.under_way = False
        self.awaited: set[int] = set()  # who is pushing what it holds back
        self.shown: set[int] = set()  # who stands still, and was asked for what it holds
        self.last: Cut | None = None  # the state of the run that a checkpoint at its end would hold
        self.lost = False  # a worker has died in this segment
        self.segment = Segment(0, 0)
        self.began = [0] * self.workers  # steps of each worker when the segment began
        self.watch = Watch(session.board, self.workers, session.job.supervision.step_timeout)
        self.stragglers = Stragglers(session.board, self.workers)
        self.queue = LeaseQueue(self.workers)
        self.roster = Roster(session, self.queue.reader, pin)
        self.desk = Desk(session, self.roster.lines, interrupts)
        self.closed = False

    # --- the run ---

    def work(self) -> Change | None:
        """Trains until the end, whatever happens, or until another number of workers is wanted."""
        session = self.session
        try:
            try:
                self.interrupts.let_go()
                self._begin()
                return self._train(self.place)
            except KeyboardInterrupt:
                session.reason = "interrupted"
                if self.under_way and not session.board.stopping:
                    self._last_cut()
                self._halt()
                session.save(self.last)
                session.measure_what_there_is()
                return None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            with suppress(Exception):
                self._halt(PATIENCE_S)
            session.fail(error)
            raise

    def _begin(self) -> None:
        """Tells that the run begins, or goes on, and waits for everybody to be there."""
        record = self.session.record
        if self.change is None:
            record.announce()
        self._await_standing()
        self.session.deposits = {}
        if self.change is not None:
            record.emit(self.change.told(record.clock.seconds()))

    def _train(self, place: Tree | None) -> Change | None:
        session = self.session
        for segment in session.segments(None if place is None else begun(place)):
            with intra_op(session.job.setup.intra_op_threads):  # updates are applied as on a worker
                with self.interrupts.held():  # a worker without its order would never stand still again
                    self._open(segment, place)
                place = None
                self._await_standing()
                self._make_up()
            session.stop_clock()
            if self.wanted is not None:
                return self._handed_over(self.wanted)
            if not session.board.stopping:
                self._last_cut()
                self._await_standing()  # who was replaced meanwhile has begun, and finds nothing left
            self._close_segment()
            session.out_of_time()  # a segment may be over before anybody has looked at the clock
            session.settle(final=segment.last or session.reason is not None)
            session.evaluate()
            if session.reason is not None:
                break
        session.save(self.last)
        session.end()
        return None

    def _open(self, segment: Segment, place: Tree | None) -> None:
        """Everybody begins the segment, or goes on where the checkpoint was taken in it."""
        session = self.session
        self.segment, self.lost = segment, False
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
        self.accounts.hand_out(left)
        following = range(left.following, self.segment.limit)
        self.queue.open([*left.numbers, *following] if left.numbers else following)

    def _set_going(self, asks: bool = False) -> None:
        """Has everybody begin, but those who are not there yet: they will when they are."""
        self.under_way = True
        going = set(range(self.workers)) - self.roster.starting
        self.standing -= going
        for worker in sorted(going):
            self._order(worker, asks)

    def _order(self, worker: int, asks: bool) -> None:
        began = time.perf_counter() - self.session.clock.seconds()
        step = self.session.board.steps[worker] - self.began[worker]
        self.watch.rest(worker)
        self.roster.send(worker, Work(self.segment, began, step, asks))

    def _make_up(self) -> None:
        """Has the batches used that workers had in hand when they died, and whatever else was not used."""
        while self.lost and not self.session.board.stopping and self.desk.queued:
            self.lost = False
            left = self.accounts.left()
            if not left.numbers and left.following == self.segment.limit:
                return
            with self.interrupts.held():
                self.desk.open(self.segment)
                self.queue.clear()
                self._hand_out(left)
                self._set_going()
            self._await_standing()

    def _close_segment(self) -> None:
        self.under_way = False
        self.queue.clear()

    # --- checkpoints ---

    def _last_cut(self) -> None:
        """Notes the state of the run where it ends, or may end: whoever is being replaced is waited for.

        A checkpoint that is due in the middle is given up instead, because the next is soon due.
        """
        state, ends = self._cut(), time.monotonic() + PATIENCE_S
        while state is None and self.session.saver is not None and self.roster.starting:
            if time.monotonic() > ends:
                break
            self._listen(POLL_S)
            self._look_for_hanging()
            self._keep_up()
            state = self._cut()
        self.last = state or self.last

    def _cut(self) -> Cut | None:
        """The state of the run at a moment at which every worker waits between two steps, or stands still.

        Nobody waits for longer than the others take to finish their step, and for the copy. None if no
        checkpoints are written, if a worker is missing, or where data is read that nobody can read again.
        """
        if self.session.saver is None or self._incomplete():
            return None
        self._pause()
        with self.interrupts.held():
            state = None if self._incomplete() else self._taken()
            self.session.board.go_on()
            self.desk.go_on()
        return state

    def _incomplete(self) -> bool:
        return bool(self.roster.starting or self.roster.gone or self.desk.torn)

    def _pause(self) -> None:
        """Everybody who is there waits between two steps, and no round is open, or stands still."""
        session, board = self.session, self.session.board
        if board.sign != PAUSE:  # else it was interrupted, and is taken up again
            with self.interrupts.held():
                session.deposits = {}
                board.pause()
                self.desk.pause()
                for worker in sorted(self.standing):
                    self._ask_to_show(worker)
        while not self._all_have_deposited():
            self._listen(POLL_S)
            self._look_for_hanging()
            self._keep_up()

    def _ask_to_show(self, worker: int) -> None:
        self.shown.add(worker)
        self.watch.rest(worker)
        self.roster.send(worker, Show())

    def _all_have_deposited(self) -> bool:
        there = set(range(self.workers)) - self.roster.starting - self.roster.gone
        return there <= self.session.deposits.keys()

    def _taken(self) -> Cut | None:
        return self.session.cut(self._place())

    def _place(self) -> Tree:
        """Where everybody is; what was finished is taken up."""
        self.accounts.collect()
        self.session.left = self.accounts.left() if self.desk.queued else None
        return {**self.segment._asdict(), **self.desk.place(), "began": list(self.began)}

    def _handed_over(self, workers: int) -> Change:
        """The state of the run for a crew of another number; everybody stands still, and has pushed all."""
        session = self.session
        session.settle(final=False)
        session.deposits = {}
        for worker in sorted(self.standing):
            self._ask_to_show(worker)
        while not self.standing <= session.deposits.keys():
            self._listen(POLL_S)
            self._look_for_hanging()
        steps = list(session.board.steps)[: self.workers]
        found = change(session, workers, self._place(), steps, not self.desk.queued, self.last)
        self.interrupts.hold()  # until the next crew works
        return found

    # --- hiring ---

    def hire(self, place: Tree | None, after: Change | None = None) -> None:
        """Starts the workers; before that, everything that they need is shared or pickled.

        Args:
            place: where the run goes on; None: it begins.
            after: the change of the number of workers that this crew is there for.
        """
        session = self.session
        self.place, self.change = place, after
        self.last = None if after is None else after.last
        self.accounts = Accounts(session, self.desk)
        session.parameters.bind(session.job.module)
        # The server must not take the workers of a run that goes on for those that it has known.
        lives = [slot.incarnation + (place is not None) for slot in session.server.book.slots]
        self.roster.hire(self._parcel(), lives[: self.workers])
        if session.job.method.exchange is not None:
            session.links += [_RemoteLink(self, worker) for worker in range(self.workers)]  # type: ignore[misc]  # all that settling asks of one

    def _parcel(self) -> Parcel:
        session, job = self.session, self.session.job
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

    # --- listening ---

    def _await_standing(self) -> None:
        """Handles what workers say until all stand still, looking at the clock meanwhile."""
        session = self.session
        while len(self.standing | self.roster.gone) < self.workers:
            self._listen(POLL_S)
            self._look_for_hanging()
            if self.under_way:
                self._keep_up()
                session.record.tick()
                for event in self.stragglers.look(session.clock.seconds()):
                    session.record.emit(event)
                self._look_up()
        self.accounts.collect()

    def _keep_up(self) -> None:
        """Workers wait where the queue is empty, or their part of the journal full."""
        self.queue.feed()
        self.accounts.collect()

    def _look_up(self) -> None:
        """Whether time is up, or a checkpoint is due."""
        session = self.session
        if session.board.stopping:
            return
        if session.out_of_time():
            self._last_cut()
            self._stop()
        elif session.wants_cut():
            state = self._cut()
            session.save(state)
        elif (wanted := session.wants_workers()) is not None:
            self._pause()
            with self.interrupts.held():
                if session.saver is not None and not self._incomplete():
                    self.last = self._taken()
                self.wanted = wanted
                self._stop()

    def _listen(self, timeout_s: float) -> None:
        """Handles one message of everybody who has sent any, or learns of a death."""
        for member, spoke in self.roster.who_spoke(timeout_s):
            with self.interrupts.held():
                try:
                    message = self.roster.receive(member, spoke)
                except WorkerError as error:
                    self._lose(member, error)
                    continue
                if message is not None:
                    self._handle(member, message)
        self.desk.hand_out()

    def _handle(self, member: Member, message: Any) -> None:
        worker = member.worker
        match message:
            case Report(entry):
                self.accounts.enter(worker, entry)
            case Ready():
                self._take_on(member)
            case Standing(buffers):
                self.session.buffers.update(buffers)
                self.standing.add(worker)
                self.desk.retire(worker)
                if self.session.board.sign == PAUSE:
                    self._ask_to_show(worker)
            case Deposit(state):
                self.session.deposits[worker] = state
                self.shown.discard(worker)
                if worker not in self.standing:
                    self.desk.paused.add(worker)
                    if self.session.board.sign != PAUSE:  # too late: nobody else would let it go
                        self.desk.go_on()
            case Flushed(found):
                self.flushed[worker] = found
            case Failed():
                self._lose(member, explained(worker, message))
            case _:
                self.desk.serve(worker, message)

    # --- failures ---

    def _lose(self, member: Member, error: BaseException) -> None:
        """A worker has failed: another takes its place, or the run ends.

        Raises:
            BaseException: the error, if it is not to be replaced.
        """
        worker, board = member.worker, self.session.board
        self.roster.bury(member)
        if worker in self.roster.starting and self.roster.is_first_life(member):
            raise error  # nobody has ever been there
        computes = self.under_way and worker not in self.standing | self.roster.starting
        batch = self.accounts.in_hand(worker) if computes else None
        verdict = self.supervisor.judge(worker, error, batch, self.accounts.has_finished_any(worker))
        if not verdict.replace:
            if verdict.note:
                error.add_note(f"freewheel: {verdict.note}; it was not replaced again")
            raise error
        goes_on = not board.stopping
        replaced = goes_on or (self.wanted is not None and worker < self.wanted)  # by the next crew
        self.session.record.emit(WorkerFailed(worker, board.steps[worker], told_of(error), replaced))
        self.lost = True
        self.accounts.settle(worker)
        self.standing.discard(worker)
        self.shown.discard(worker)
        self.roster.starting.discard(worker)
        self.session.deposits.pop(worker, None)
        if worker in self.awaited:  # what it was to push is lost with it
            self.flushed[worker] = False
        if goes_on:
            try:
                self._replace(member)
            except (OSError, EOFError) as failure:
                error.add_note(f"freewheel: no process could take its place ({failure or 'no server'})")
                raise error from None

    def _replace(self, member: Member) -> None:
        if self.under_way and self.desk.queued:
            self.queue.replaced()
        self.watch.rest(member.worker)
        self.accounts.begin_life(member.worker)
        self.roster.replace(member)

    def _take_on(self, member: Member) -> None:
        """A worker is there."""
        worker = member.worker
        self.roster.starting.discard(worker)
        if self.roster.is_first_life(member):
            if worker in self.session.deposits:  # of the checkpoint that the run goes on from
                self.roster.send(worker, TakeBack(self.session.deposits[worker]))
        else:
            life, now = member.place.incarnation, self.session.clock.seconds()
            self.session.record.emit(WorkerRestarted(worker, life, now))
        if self.under_way and not self.session.board.stopping:
            self._order(worker, asks=self.desk.serves)
        else:
            self.standing.add(worker)

    def _look_for_hanging(self) -> None:
        """Kills workers that have been in one step, or have been starting, for too long."""
        self.watch.begin()
        resting = (self.standing - self.awaited - self.shown) | self.roster.gone
        for worker in range(self.workers):
            if worker in resting or self.desk.waits(worker):
                self.watch.rest(worker)
                continue
            passed = self.watch.look(worker, worker in self.roster.starting)
            if passed is not None:
                self.roster.kill(worker, passed)
                self.watch.rest(worker)

    # --- settling ---

    def flush(self, worker: int, final: bool) -> bool:
        """Has a worker push what it holds back; whether there was anything."""
        if worker in self.roster.starting or worker in self.roster.gone:
            return False
        if worker in self.awaited:  # the answer to a question that was interrupted
            self._await_flushed(worker)
        self.awaited.add(worker)
        self.watch.rest(worker)
        self.roster.send(worker, Flush(final))
        return self._await_flushed(worker)

    def _await_flushed(self, worker: int) -> bool:
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
        while len(self.standing | self.roster.gone) < self.workers:
            if ends is not None and time.monotonic() > ends:
                break
            try:
                self._listen(POLL_S)
                self._look_for_hanging()
                self._keep_up()
            except Exception:
                if ends is None:
                    raise
                self.desk.dismiss()
        self.accounts.collect()
        self.session.stop_clock()
        self.under_way = False

    def close(self) -> None:
        """Ends every process, and lets go of all that was open."""
        if self.closed:
            return
        self.closed = True
        try:
            self.roster.dismiss(self.standing)
        finally:
            self.roster.close()
            self.queue.close()
            self.session.close()


@final
class _RemoteLink:
    """A worker's link, as far as settling needs one."""

    def __init__(self, crew: Crew, worker: int) -> None:
        self._crew = crew
        self._worker = worker

    def flush(self, final: bool) -> bool:
        """Pushes what is left when everybody stands still; whether there was anything."""
        return self._crew.flush(self._worker, final)

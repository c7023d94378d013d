"""The threads engine: all workers in one process, on one copy of the weights and of the data.

PyTorch leaves the interpreter lock while it computes, so threads use all cores as long as the Python of a
step is short. Each worker runs with one intra-op thread, set inside the thread: PyTorch keeps that number
per thread.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch

from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree
from freewheel.engines.base import seeded
from freewheel.engines.changes import Change, change, taken_over
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.lives import Failure, Lives, refused
from freewheel.engines.plan import Segment, begun
from freewheel.engines.recorded import session_of
from freewheel.engines.session import Session
from freewheel.engines.supervisor import Supervisor, told_of
from freewheel.errors import ConfigurationError
from freewheel.events import Monitor, WorkerFailed, WorkerRestarted
from freewheel.gates import NEVER_WAITED_FOR
from freewheel.job import Job, Result
from freewheel.server import Receipt
from freewheel.sources import Lease
from freewheel.tasks import StepReport
from freewheel.update import Update

GONE = 2**62  # the segment that a worker has finished who failed and was not replaced: it is never waited for
POLL_S = 0.05  # how often the main thread looks at the clock while workers train
IN_ROUND = Receipt("pending", 0)  # of a push into a round in which a rule has raised an error


@final
@dataclass(frozen=True)
class Threads:
    """Runs every worker in a thread of this process.

    Works where processes are awkward: notebooks, lambdas, local classes. Methods with a free gate take no
    lock at all; the others take one around each push. A worker whose step raises an exception is replaced,
    unless ``on_error="stop"``; one that hangs cannot be, see docs/failures.md.

    Attributes:
        locks: "none", or "shard": updates of one shard, and copies of it, exclude each other, so that a
            worker never copies half an update. Live reads (Hogwild!) are not locked either way.

    Raises:
        ConfigurationError: an unknown kind of locks.
    """

    locks: Literal["none", "shard"] = "none"
    name: str = "threads"

    def __post_init__(self) -> None:
        if self.locks not in ("none", "shard"):
            raise ConfigurationError(f"`locks` must be 'none' or 'shard', got {self.locks!r}")

    def check(self, job: Job) -> None:
        """Nothing: every job can be run."""

    def run(self, job: Job, monitors: Sequence[Monitor] = ()) -> Result:
        """Trains; Ctrl-C lets the workers finish their step and returns what was trained."""
        threads = torch.get_num_threads()
        try:
            with seeded(job):
                return self._trained(job, monitors)
        finally:
            torch.set_num_threads(threads)  # a worker's setting is the default of threads that start later

    def _trained(self, job: Job, monitors: Sequence[Monitor]) -> Result:
        """From the first crew to the last: one works until somebody wants another number of workers."""
        supervisor, shard_locks = Supervisor(job.supervision), self.locks == "shard"
        with Interrupts() as interrupts:
            crew = _Crew(session_of(job, monitors, self.name), shard_locks, supervisor, interrupts)
            after = crew.run(crew.session.resume())
            while after is not None:
                earlier = crew.session
                try:
                    session = session_of(after.job, monitors, self.name)
                    crew = _Crew(session, shard_locks, supervisor, interrupts)
                    place = taken_over(session, earlier, after)
                except BaseException as error:
                    earlier.save(after.last)
                    earlier.fail(error)
                    raise
                after = crew.run(place, after)
        return crew.session.result()


class _Crew:
    """The worker threads of one run, and the main thread's side of it.

    Workers wait on ``changed``; the main thread waits on ``stood``, so that the steps of a synchronous run
    do not wake it. Both share one lock. A worker stands still when it has finished the segment that
    ``round`` counts. A thread that fails reports that, and ends; the main thread decides what becomes of it.

    Args:
        session: of the run, or of as much of it as has the same number of workers.
        shard_locks: updates of one shard exclude each other.
        supervisor: decides what becomes of workers that fail.
        interrupts: signals that wait.
    """

    def __init__(
        self, session: Session, shard_locks: bool, supervisor: Supervisor, interrupts: Interrupts
    ) -> None:
        self.session = session
        self.supervisor = supervisor
        self.interrupts = interrupts
        self.resizing: int | None = None  # another number of workers that is wanted
        self.workers = session.job.setup.workers
        lock = threading.Lock()
        self.changed, self.stood = threading.Condition(lock), threading.Condition(lock)
        # One worker waits for nobody and races with nobody, whatever the method.
        method = session.job.method
        self.waits = self.workers > 1 and (method.rounds or not method.gate.open)
        exclusive = method.rule_for(self.workers).exclusive
        self.locked = self.workers > 1 and (self.waits or exclusive)
        session.server.book.racing = self.workers > 1 and not self.locked
        if shard_locks:
            for shard in session.server.shards:
                shard.lock = threading.Lock()
        self.segment: Segment | None = None
        self.round = 0  # counts segments, so that a worker knows a new one
        self.finished = [-1] * self.workers  # the last segment that each worker has finished
        self.training = False  # a segment is under way
        self.stopping = False
        self.over = False
        self.abandoned = False
        self.failures: list[Failure] = []  # that the main thread has not seen to yet
        self.held: dict[int, Lease | None] = {}  # batches that those had in hand
        self.pushed: dict[int, tuple[int, Receipt]] = {}  # where pushes are locked: the last step with one
        self.left_behind: list[threading.Thread] = []  # they hang
        self.steps = [0] * self.workers  # finished, in the whole run; counted where workers wait
        self.began = [0] * self.workers  # all steps of each worker when the segment began
        self.wanted = False  # a checkpoint: everybody is to stand still between two steps
        self.standing: set[int] = set()  # who does, within a segment
        self.last: Cut | None = None  # the state of the run that a checkpoint at its end would hold
        self.progress = [0] * self.workers
        session.job.source.lock = threading.Lock()
        session.admit_workers(self._push_locked if self.locked else session.server.push)
        self.threads = [self._thread(worker, 0) for worker in range(self.workers)]

    def _thread(self, worker: int, seen: int) -> threading.Thread:
        name = f"freewheel-{worker}"
        return threading.Thread(target=self._work, args=(worker, seen), name=name, daemon=True)

    # --- the main thread ---

    def run(self, place: Tree | None, after: Change | None = None) -> Change | None:
        """Trains until the end, whatever happens, or until another number of workers is wanted.

        Args:
            place: where the run goes on; None: it begins.
            after: the change of the number of workers that this crew is there for.
        """
        self.lives = Lives(self.session, self.supervisor)
        self.last = None if after is None else after.last
        try:
            return self._run(place, after)
        finally:
            try:
                self._dismiss()
            finally:
                self.session.close()

    def _run(self, place: Tree | None, after: Change | None) -> Change | None:
        session = self.session
        try:
            try:
                self.interrupts.let_go()
                self._begin(after)
                return self._train(place)
            except KeyboardInterrupt:
                session.reason = "interrupted"
                self._halt(interrupted=True)
                session.save(self.last)
                session.measure_what_there_is()
                return None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self._halt()
            session.fail(error)
            raise

    def _begin(self, after: Change | None) -> None:
        """Tells that the run begins, or goes on, and waits for everybody to be there."""
        record = self.session.record
        if after is None:
            record.announce()
        for thread in self.threads:
            thread.start()
        self._await_standing()
        if after is not None:
            record.emit(after.told(record.clock.seconds()))

    def _train(self, place: Tree | None) -> Change | None:
        session = self.session
        for segment in session.segments(None if place is None else begun(place)):
            with self.changed:
                self._open(segment, place)
                place = None
                self.segment, self.training = segment, True
                session.clock.start()
                self.round += 1
                self.changed.notify_all()
            self._await_standing()
            session.stop_clock()
            if self.resizing is not None:
                return self._handed_over(self.resizing)
            if not self.stopping:
                self.last = session.cut(self._place())
            self.training = False
            session.out_of_time()  # a segment may be over before anybody has looked at the clock
            session.settle(final=segment.last or session.reason is not None)
            session.evaluate()
            if session.reason is not None:
                break
        session.save(self.last)
        session.end()
        return None

    def _handed_over(self, workers: int) -> Change:
        """The state of the run for a crew of another number; everybody stands still, and has pushed all."""
        session = self.session
        session.settle(final=False)
        steps = [context.sequence for context in session.contexts]
        found = change(session, workers, self._place(), steps, True, self.last)
        self.interrupts.hold()  # until the next crew works
        return found

    def _open(self, segment: Segment, place: Tree | None) -> None:
        """Everybody begins the segment, or goes on where the checkpoint was taken in it."""
        session = self.session
        if place is None:
            self.began = [context.sequence for context in session.contexts]
        else:
            self.steps, self.began = place["steps"], place["began"]
        if place is None or segment.limit != place["limit"]:
            session.server.readmit()
        self.progress = list(self.steps)  # who had no further lease finds none again, and leaves

    def _place(self) -> Tree:
        """Where everybody is, for a checkpoint."""
        assert self.segment is not None
        return {**self.segment._asdict(), "steps": self.steps, "began": self.began}

    def _cut(self, ends: bool = False) -> Cut | None:
        """The state of the run at a moment at which every worker stands between two steps.

        Nobody waits for longer than the others take to finish their step, and for the copy; writing it goes
        on beside the training. A worker that fails meanwhile is replaced first.

        Args:
            ends: nobody is to go on.
        """
        self.wanted = True
        try:
            while not self._listen(self._stand_between_steps, self._lose):
                pass
            with self.stood:
                state = self.session.cut(self._place())
                self.stopping = self.stopping or ends
                return state
        finally:
            with self.changed:
                self.wanted = False
                self.changed.notify_all()

    def _stand_between_steps(self) -> bool:
        return all(
            finished >= self.round or worker in self.standing for worker, finished in enumerate(self.finished)
        )

    def _stand_still(self) -> bool:
        started = zip(self.threads, self.finished, strict=True)
        return all(finished >= self.round for thread, finished in started if thread.ident is not None)

    def _listen(self, ready: Callable[[], bool], see_to: Callable[[Failure], None]) -> bool:
        """Waits a moment, unless all are ready, and sees to those who have failed; whether all are ready."""
        with self.stood:
            if not self.failures and not ready():
                self.stood.wait(POLL_S)
            if self.training:
                self.failures += self.lives.hanging(self.threads, self._rests)
            done = not self.failures and ready()
        while self.failures:
            with Interrupts() as signals, signals.held():  # a batch is not to be lost
                see_to(self.failures.pop(0))
        return done

    def _rests(self, worker: int) -> bool:
        return self.finished[worker] >= self.round or worker in self.standing

    def _await_standing(self) -> None:
        """Waits until every worker stands still, looking at the clock meanwhile."""
        while not self._listen(self._stand_still, self._lose):
            if self.segment is not None:
                self.session.record.tick()
                self._look_up()

    def _look_up(self) -> None:
        """Whether time is up, or a checkpoint is due; workers that stop early give up what they share."""
        session = self.session
        if session.out_of_time():
            if not self.stopping and session.saver is not None:
                self.last = self._cut()
            self.stopping = True
        elif session.wants_cut():
            session.save(self._cut())
        elif not self.stopping and (wanted := session.wants_workers()) is not None:
            self.last = self._cut(ends=True) or self.last
            self.resizing = wanted

    def _halt(self, interrupted: bool = False) -> None:
        """Lets every worker finish its step; a second Ctrl-C leaves them behind.

        Args:
            interrupted: the run ends well, unless something goes wrong meanwhile. Else it does not matter.
        """
        try:
            if interrupted and self.training and not self.stopping and self.session.saver is not None:
                self.last = self._cut()
            self.stopping = True
            with self.changed:
                self.changed.notify_all()
            while not self._listen(self._stand_still, self._lose if interrupted else self._count_out):
                pass
        except KeyboardInterrupt:
            self.abandoned = self.stopping = True
            raise
        self.session.stop_clock()

    def _dismiss(self) -> None:
        with self.changed:
            self.over = self.stopping = True
            self.changed.notify_all()
        for thread in self.threads:
            if thread.ident is not None and not self.abandoned and thread not in self.left_behind:
                thread.join()

    # --- failures ---

    def _lose(self, failure: Failure) -> None:
        """A worker has failed: another takes its place, or the run ends.

        Raises:
            BaseException: the error, if it is not to be replaced.
        """
        worker, session = failure.worker, self.session
        if failure.context is not session.contexts[worker]:
            return  # it has hung before, and was left behind
        self._count_out(failure)
        if not (failure.hangs and self.stopping):  # of a run that is about to end, its step is not missed
            self.lives.judge(failure, self.segment is not None)
        goes_on, step = not self.stopping, failure.context.sequence
        self._settle_accounts(failure)
        incarnation = session.replace_worker(worker)
        self.lives.begin(worker)
        session.record.emit(WorkerFailed(worker, step, told_of(failure.error), goes_on))
        if goes_on:
            self.threads[worker] = self._thread(worker, self.round - 1)
            with self.changed:
                self.finished[worker] = self.round - 1
            self.threads[worker].start()
            session.record.emit(WorkerRestarted(worker, incarnation, session.clock.seconds()))

    def _count_out(self, failure: Failure) -> None:
        """Nobody waits for the thread any more."""
        thread = self.threads[failure.worker]
        if failure.hangs:
            failure.context.deliver = refused
            self.left_behind.append(thread)
        elif thread not in self.left_behind:
            thread.join()
        with self.changed:
            self.finished[failure.worker] = GONE
            self.changed.notify_all()  # if the run is about to end, nobody is to wait for its step

    def _settle_accounts(self, failure: Failure) -> None:
        """Books the step that a worker has failed in if it is part of a round, else gives its batch back."""
        worker, context, lease, session = failure.worker, failure.context, failure.lease, self.session
        if lease is None:
            return
        step, receipt = self.pushed.get(worker, (-1, IN_ROUND))
        if session.job.method.leases == "fixed" and step == context.sequence:
            session.end_step(context, lease, StepReport(math.nan, lease.samples), receipt)
            self._advance(worker)
        else:
            session.put_back(lease)

    # --- the workers' threads ---

    def _work(self, worker: int, seen: int) -> None:
        session, context = self.session, self.session.contexts[worker]
        try:
            torch.set_num_threads(session.job.setup.intra_op_threads)
            session.states[worker] = session.job.task.init(context)
            while self._next_segment(worker, seen):
                seen = self.round
                assert self.segment is not None
                self._segment(worker, self.segment)
        except BaseException as error:
            with self.changed:
                self.failures.append(Failure(worker, context, error, self.held.pop(worker, None)))
                self.stood.notify()

    def _next_segment(self, worker: int, seen: int) -> bool:
        with self.changed:
            self.finished[worker] = seen
            self.stood.notify()
            while self.round == seen and not self.over:
                self.changed.wait()
            return not self.over

    def _segment(self, worker: int, segment: Segment) -> None:
        session = self.session
        context, state = session.contexts[worker], session.states[worker]
        task_step, begin_step, end_step = session.job.task.step, session.begin_step, session.end_step
        step = context.sequence - self.began[worker]
        lease = None  # the batch in hand
        try:
            while not self.stopping and (not (self.waits or self.wanted) or self._may_start(worker)):
                lease = begin_step(worker, segment, step)
                if lease is None:
                    break
                report = task_step(context, lease, state)
                end_step(context, lease, report, context.receipt)
                lease = None
                step += 1
                if self.waits:
                    self._advance(worker)
        except BaseException:
            self.held[worker] = lease
            raise
        if self.waits:
            self._retire(worker)

    def _may_start(self, worker: int) -> bool:
        """Waits for the gate, and while a checkpoint is taken; False if the run is to stop."""
        with self.changed:
            while not self.stopping and (self.wanted or not self._is_let_through(worker)):
                self.standing.add(worker)
                if self.wanted:
                    self.stood.notify()
                self.changed.wait()
            self.standing.discard(worker)
            return not self.stopping

    def _is_let_through(self, worker: int) -> bool:
        return not self.waits or self.session.may_start(worker, self.progress)

    def _advance(self, worker: int) -> None:
        with self.changed:
            self.steps[worker] += 1
            self.progress[worker] = self.steps[worker]
            self.changed.notify_all()

    def _retire(self, worker: int) -> None:
        with self.changed:
            self.progress[worker] = NEVER_WAITED_FOR
            self.session.server.retire(worker)
            self.changed.notify_all()

    def _push_locked(self, update: Update) -> Receipt:
        with self.changed:
            receipt = IN_ROUND
            try:
                receipt = self.session.server.push(update)
            finally:
                if update.last and receipt.status != "duplicate":
                    self.pushed[update.worker] = self.session.contexts[update.worker].sequence, receipt
            return receipt

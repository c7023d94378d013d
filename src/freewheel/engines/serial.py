"""The serial engine: a readable loop that is the semantics. Every other engine must agree with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree
from freewheel.engines.base import intra_op, seeded
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.plan import Segment, begun
from freewheel.engines.recorded import session_of
from freewheel.engines.session import Session
from freewheel.errors import FreewheelError, WorkerError
from freewheel.events import Monitor
from freewheel.gates import NEVER_WAITED_FOR
from freewheel.job import Job, Result
from freewheel.server import Receipt
from freewheel.sources import Lease
from freewheel.tasks import StepReport
from freewheel.update import Update


class InFlight(NamedTuple):
    """A step that was computed and whose update is on its way."""

    worker: int
    lease: Lease
    report: StepReport


@final
@dataclass(frozen=True)
class Serial:
    """Runs all workers in turn, in the calling thread.

    Everybody who may start computes; then the oldest computed step is delivered, and its worker may start
    again. So with W free workers every update but the first is W-1 updates stale, as on W machines of equal
    speed. One worker has nobody to wait for: its update is applied at once.
    """

    name: str = "serial"

    def check(self, job: Job) -> None:
        """Nothing: every job can be run."""

    def run(self, job: Job, monitors: Sequence[Monitor] = ()) -> Result:
        """Trains in the calling thread; Ctrl-C ends the run and returns what was trained."""
        session = session_of(job, monitors, self.name)
        with intra_op(job.setup.intra_op_threads), seeded(job):
            _Loop(session).run()
        return session.result()


class _Loop:
    """The loop, and where it is in a segment.

    Attributes:
        outbox: updates of each worker's step that was computed and not delivered.
        steps: finished by each worker in the whole run.
        before: the same when the segment began.
        progress: the same; one that has no further lease is never waited for.
        waiting: who may start when the gate lets it, in this order.
        in_flight: steps that were computed, the oldest first.
        last: the state of the run that a checkpoint at its end would hold.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        workers = session.job.setup.workers
        self.outbox: list[list[Update]] = [[] for _ in range(workers)]
        self.steps = [0] * workers
        self.before, self.progress = list(self.steps), list(self.steps)
        self.waiting: deque[int] = deque()
        self.in_flight: deque[InFlight] = deque()
        self.last: Cut | None = None
        push = session.server.push
        session.admit_workers(push if workers == 1 else self._post, push)

    def _post(self, update: Update) -> Receipt | None:
        self.outbox[update.worker].append(update)
        return None

    def run(self) -> None:
        session = self.session
        place = session.resume()
        try:
            session.record.announce()
            for context in session.contexts:
                session.states[context.worker] = session.job.task.init(context)
            for segment in session.segments(None if place is None else begun(place)):
                self._open(segment, place)
                place = None
                session.clock.start()
                self._segment(segment)
                session.stop_clock()
                if session.reason is None:
                    self.last = session.cut(self._place(segment))
                session.settle(final=segment.last or session.reason is not None)
                session.evaluate()
                if session.reason is not None:
                    break
            session.save(self.last)
            session.end()
        except KeyboardInterrupt:
            session.stop_clock()
            session.reason = "interrupted"
            session.save(self.last)
            session.measure_what_there_is()
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            session.close()

    def _open(self, segment: Segment, place: Tree | None) -> None:
        """Everybody begins the segment, or goes on where the checkpoint was taken in it."""
        if place is not None:
            self._put_back(place)
        if place is None or segment.limit != place["limit"]:
            self.session.server.readmit()
            under_way = {step.worker for step in self.in_flight}
            self.waiting = deque(worker for worker in range(len(self.steps)) if worker not in under_way)
            self.progress = list(self.steps)
        if place is None:
            self.before = list(self.steps)

    def _place(self, segment: Segment) -> Tree:
        """Where the loop is, for a checkpoint."""
        return {
            **segment._asdict(),
            **{name: getattr(self, name) for name in ("steps", "before", "progress")},
            "waiting": list(self.waiting),
            "in_flight": [(s.worker, s.lease.number, s.lease.stream, *s.report) for s in self.in_flight],
            "outbox": [
                [update.state(context.statistics) for update in updates]
                for updates, context in zip(self.outbox, self.session.contexts, strict=True)
            ],
        }

    def _put_back(self, place: Tree) -> None:
        self.steps, self.before, self.progress = place["steps"], place["before"], place["progress"]
        self.waiting = deque(place["waiting"])
        for worker, number, stream, loss, samples in place["in_flight"]:
            self.in_flight.append(
                InFlight(worker, Lease(number, None, samples, stream), StepReport(loss, samples))
            )
        for context, updates in zip(self.session.contexts, place["outbox"], strict=True):
            self.outbox[context.worker] = [Update.restored(then, context.statistics) for then in updates]

    def _segment(self, segment: Segment) -> None:
        with Interrupts(self.session.saver is not None) as signals, signals.held(insist=True):
            while True:
                self._start_those_who_may(segment)
                if not self.in_flight:
                    return
                self._deliver(self.in_flight.popleft())
                self._look_up(segment, signals)

    def _start_those_who_may(self, segment: Segment) -> None:
        session, waiting = self.session, self.waiting
        for _ in range(len(waiting)):
            worker = waiting.popleft()
            if not session.may_start(worker, self.progress):
                waiting.append(worker)
                continue
            step = self.steps[worker] - self.before[worker]
            lease = None if session.reason else self._begin(worker, segment, step)
            if lease is None:
                self.progress[worker] = NEVER_WAITED_FOR
                session.server.retire(worker)
            else:
                self.in_flight.append(InFlight(worker, lease, self._compute(worker, lease)))

    def _look_up(self, segment: Segment, signals: Interrupts) -> None:
        """Between two deliveries: whether time is up, somebody interrupts, or a checkpoint is due."""
        session = self.session
        goes_on = session.reason is None
        ends = session.out_of_time() or signals.waiting
        if goes_on and ends:
            self.last = session.cut(self._place(segment))
        elif goes_on and session.wants_cut():
            session.save(session.cut(self._place(segment)))
        session.record.tick()
        signals.let_through()

    def _begin(self, worker: int, segment: Segment, step: int) -> Lease | None:
        with self._failing(worker):
            return self.session.begin_step(worker, segment, step)

    def _compute(self, worker: int, lease: Lease) -> StepReport:
        session = self.session
        with self._failing(worker):
            return session.job.task.step(session.contexts[worker], lease, session.states[worker])

    @contextmanager
    def _failing(self, worker: int) -> Iterator[None]:
        """Says which worker an error comes from."""
        sequence = self.session.contexts[worker].sequence
        try:
            yield
        except FreewheelError:
            raise
        except Exception as error:
            raise WorkerError(worker, sequence, error) from error

    def _deliver(self, step: InFlight) -> None:
        context = self.session.contexts[step.worker]
        receipt = context.receipt
        for update in self.outbox[step.worker]:
            receipt = self.session.server.push(update)
        self.outbox[step.worker].clear()
        self.session.end_step(context, step.lease, step.report, receipt)
        self.steps[step.worker] += 1
        self.progress[step.worker] = self.steps[step.worker]
        self.waiting.append(step.worker)

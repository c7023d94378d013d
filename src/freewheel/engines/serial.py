"""The serial engine: a readable loop that is the semantics. Every other engine must agree with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

from freewheel.engines.base import intra_op, seeded
from freewheel.engines.plan import Segment
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
    def __init__(self, session: Session) -> None:
        self.session = session
        workers = session.job.setup.workers
        self.outbox: list[list[Update]] = [[] for _ in range(workers)]
        self.steps = [0] * workers  # finished, in the whole run
        push = session.server.push
        session.admit_workers(push if workers == 1 else self._post, push)

    def _post(self, update: Update) -> Receipt | None:
        self.outbox[update.worker].append(update)
        return None

    def run(self) -> None:
        session = self.session
        try:
            session.record.announce()
            for context in session.contexts:
                session.states[context.worker] = session.job.task.init(context)
            for segment in session.segments():
                session.clock.start()
                self._segment(segment)
                session.stop_clock()
                session.settle(final=segment.last or session.reason is not None)
                session.evaluate()
                if session.reason is not None:
                    break
            session.end()
        except KeyboardInterrupt:
            session.stop_clock()
            session.reason = "interrupted"
            session.measure_what_there_is()
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            session.close()

    def _segment(self, segment: Segment) -> None:
        session = self.session
        workers = session.job.setup.workers
        session.server.readmit()
        waiting, in_flight = deque(range(workers)), deque[InFlight]()
        before, progress = list(self.steps), list(self.steps)
        while True:
            for _ in range(len(waiting)):
                worker = waiting.popleft()
                if not session.may_start(worker, progress):
                    waiting.append(worker)
                    continue
                step = self.steps[worker] - before[worker]
                lease = None if session.reason else self._begin(worker, segment, step)
                if lease is None:
                    progress[worker] = NEVER_WAITED_FOR
                    session.server.retire(worker)
                else:
                    in_flight.append(InFlight(worker, lease, self._compute(worker, lease)))
            if not in_flight:
                return
            self._deliver(in_flight.popleft(), progress, waiting)
            session.out_of_time()
            session.record.tick()

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

    def _deliver(self, step: InFlight, progress: list[int], waiting: deque[int]) -> None:
        context = self.session.contexts[step.worker]
        receipt = context.receipt
        for update in self.outbox[step.worker]:
            receipt = self.session.server.push(update)
        self.outbox[step.worker].clear()
        self.session.end_step(context, step.lease, step.report, receipt)
        self.steps[step.worker] += 1
        progress[step.worker] = self.steps[step.worker]
        waiting.append(step.worker)

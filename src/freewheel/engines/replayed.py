"""Runs a recording again: every operation in its recorded order, in the calling thread.

Between two operations a worker computes with nothing but its own copy of the weights, so that it does not
matter when: a step is computed at the place at which the recorded one began.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar, final

from torch import Tensor

from freewheel.engines.base import intra_op, seeded
from freewheel.engines.recorded import ReplayedServer, ReplayedSession
from freewheel.errors import FreewheelError, TrainingError, WorkerError
from freewheel.recording.applied import AppliedUpdate, Standing, norm_of
from freewheel.recording.log import Kind, Operation, Recording
from freewheel.server import Receipt
from freewheel.sources import Lease
from freewheel.tasks import StepReport
from freewheel.update import Update

R = TypeVar("R")


class _Reached(Exception):  # noqa: N818 - it is no error
    """The update to stop at was applied."""


@final
class Replayer:
    """Runs a recording on a session.

    Args:
        session: of the job that was recorded; its module holds the initial weights.
        recording: what to do.
        until: stop after this update; None runs all.

    Attributes:
        done: operations so far.
        current: the update it stopped at.
    """

    def __init__(self, session: ReplayedSession, recording: Recording, until: int | None) -> None:
        self.session = session
        self.until = until
        self.operations = list(recording)
        self.done = 0
        self.current: AppliedUpdate | None = None
        assert isinstance(session.server, ReplayedServer)
        session.server.around = self._retiring
        session.paces = [deque(paces) for paces in recording.paces()]
        self._workers = [Standing() for _ in range(session.job.setup.workers)]
        self._settling = False
        self._pulling = False
        self._last: tuple[Operation, float] | None = None  # of the round under way
        self._before: Tensor | None = None
        session.admit_workers(self._post, self._post_now, self._pull)
        for context in session.contexts:
            context.shared_statistics = context.shared_statistics.clone()
        self._do = {
            Kind.PULL: self._begin,
            Kind.STEP: self._step,
            Kind.PUSH: self._deliver,
            Kind.RETIRE: self._retire,
            Kind.READMIT: self._readmit,
            Kind.SETTLE: self._settle,
            Kind.EVALUATE: self._evaluate,
        }

    def run(self) -> None:
        """Runs the operations; afterwards the module holds the weights."""
        session, job = self.session, self.session.job
        try:
            with intra_op(job.setup.intra_op_threads), seeded(job):
                session.record.announce()
                for context in session.contexts:
                    session.states[context.worker] = job.task.init(context)
                session.clock.start()
                self._follow()
                session.stop_clock()
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            session.close()

    def _follow(self) -> None:
        try:
            while self.done < len(self.operations):
                operation = self._take()
                self._do[operation.kind](operation)
        except _Reached:
            pass

    def _take(self) -> Operation:
        operation, self.done = self.operations[self.done], self.done + 1
        return operation

    # --- operations ---

    def _begin(self, operation: Operation) -> None:
        """A worker pulls: its next step begins."""
        self.done -= 1  # taken by the pull itself
        self._pulling = True
        self.session.links[operation.worker].begin()
        if self._pulling:
            self.done += 1
            raise self._left("it pulled, but now it does not")
        self._workers[operation.worker].begun = True

    def _step(self, operation: Operation) -> None:
        worker, session = self._workers[operation.worker], self.session
        context = session.contexts[operation.worker]
        if worker.outbox:
            raise self._left("it computes before what it pushed has arrived")
        if not worker.begun:
            session.links[operation.worker].begin()
        worker.begun = False
        worker.step, worker.lease = context.sequence, operation.number
        lease = session.job.source.fetch(operation.number)
        assert lease is not None
        report = self._compute(operation.worker, lease)
        worker.loss = report.loss
        if worker.outbox:
            worker.computing = (lease, report)  # its push follows
        else:
            session.end_step(context, lease, report, context.receipt)
        session.record.tick()

    def _compute(self, worker: int, lease: Lease) -> StepReport:
        session = self.session
        context = session.contexts[worker]
        try:
            return session.job.task.step(context, lease, session.states[worker])
        except FreewheelError:
            raise
        except Exception as error:
            raise WorkerError(worker, context.sequence, error) from error

    def _deliver(self, operation: Operation) -> None:
        worker, context = self._workers[operation.worker], self.session.contexts[operation.worker]
        if not worker.outbox:
            raise self._left("it pushed, but now it has nothing to push")
        receipt = self._push(worker.outbox.popleft(), operation)
        context.receipt = receipt
        if worker.computing is not None:
            lease, report = worker.computing
            worker.computing = None
            self.session.end_step(context, lease, report, receipt)

    def _retire(self, operation: Operation) -> None:
        self.session.server.retire(operation.worker)

    def _retiring(self, worker: int, retire: Callable[[], None]) -> None:
        """A worker retires: as an operation of its own, or at the end of a stand."""
        if self._settling and self.session.server.gathers:
            self._expected(Kind.RETIRE)
        self._around(retire)

    def _readmit(self, operation: Operation) -> None:
        self.session.server.readmit(None if operation.worker < 0 else operation.worker)

    def _settle(self, operation: Operation) -> None:
        self._settling = True
        self.session.settle(final=bool(operation.number))
        self._settling = False

    def _evaluate(self, operation: Operation) -> None:
        self.session.record.tick(force=True)

    # --- what workers do ---

    def _pull(self, target: Tensor) -> tuple[int, ...]:
        if not (self._pulling or self._settling):
            raise self._left("it did not pull, but now it does")
        self._pulling = False
        operation = self._expected(Kind.PULL)
        context = self.session.contexts[operation.worker]
        context.shared_statistics.copy_(self.session.parameters.statistics)
        return self.session.server.pull(target)

    def _post(self, update: Update) -> None:
        self._workers[update.worker].outbox.append(update)

    def _post_now(self, update: Update) -> Receipt | None:
        """A push before a step waits for its place; when all stand still, it is the next operation."""
        if not self._settling:
            self._post(update)
            return None
        return self._push(update, self._expected(Kind.PUSH))

    def _expected(self, kind: Kind) -> Operation:
        if self.done == len(self.operations) or self.operations[self.done].kind != kind:
            raise self._left(f"a {kind.name.lower()} comes now, which was not recorded here")
        return self._take()

    # --- updates ---

    def _push(self, update: Update, operation: Operation) -> Receipt:
        if (update.worker, update.sequence) != (operation.worker, operation.number):
            raise self._left(f"push {update.sequence} of worker {update.worker} comes now")
        gradients = [gradient for gradient in update.gradients if gradient is not None]
        before = self._last
        if self._is_next():
            self._last = (operation, norm_of(gradients))
        receipt = self._around(lambda: self.session.server.push(update))
        if receipt.status not in ("applied", "pending"):
            self._last = before  # it has no part in the update
        if receipt != (operation.status, operation.staleness):
            raise self._left(f"the push was {operation.status!r}, and is {receipt.status!r} now")
        return receipt

    def _is_next(self) -> bool:
        """Whether the next update that is applied is the one to stop at."""
        return self.until is not None and self.session.server.version == self.until - 1

    def _around(self, act: Callable[[], R]) -> R:
        """Does something that may apply an update, and stops if that is the one."""
        if not self._is_next():
            return act()
        before = self.session.parameters.flat.clone()
        result = act()
        if self.session.server.version == self.until and self._last is not None:
            self.current = self._applied(*self._last, before)
            raise _Reached
        return result

    def _applied(self, operation: Operation, norm: float, before: Tensor) -> AppliedUpdate:
        parameters = self.session.parameters
        old = [entry.view(before) for entry in parameters.layout.trainable]
        number, place = self.session.server.version, self.done - 1
        worker = self._workers[operation.worker]
        return worker.applied(number, place, operation, norm, parameters.trainable_views(), old)

    def _left(self, what: str) -> TrainingError:
        number = max(self.done - 1, 0)
        operation = self.operations[number]
        return TrainingError(
            f"the replay left its recording at operation {number}, a {operation.kind.name.lower()} of worker"
            f" {operation.worker}: {what}; model, data, loss or versions are not those of the run"
        )

"""What every engine shares: the workers' contexts, the plan, the schedule of evaluations.

An engine decides where and when steps run. Everything else about a run is here or in its record
(``record.py``), so that engines agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freewheel.checkpoints import cut
from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree
from freewheel.elastic import check_resizable
from freewheel.engines import plan
from freewheel.engines.base import measured
from freewheel.engines.clock import Timekeeper
from freewheel.engines.plan import Segment
from freewheel.engines.record import Record
from freewheel.engines.worker import Equipment, Life, hopeless, pace
from freewheel.errors import ConfigurationError, WorkerError
from freewheel.events import (
    NOT_PUSHED,
    Evaluating,
    Monitor,
    RunFinished,
    WorkerFailed,
    WorkersChanged,
    WorkersKept,
)
from freewheel.exchanges import Exchange, Local
from freewheel.job import Job, Result
from freewheel.link import Link, Outgoing, Pull, Send
from freewheel.machine import keep_large_blocks
from freewheel.params import Parameters
from freewheel.server import Receipt, Server
from freewheel.sources import Lease
from freewheel.tasks import StepReport, WorkerContext


class Line(NamedTuple):
    """How workers reach the server; see :meth:`Session.admit_workers`."""

    send: Send
    send_now: Send
    pull: Pull


class Session:
    """One run under way.

    Args:
        job: what to run.
        monitors: who hears of it.
        engine: its name, for the record.
        clock: a virtual one, or one of several processes; None measures this process.
        memory: bytes that the run holds; None measures this process, or nothing where time is virtual.
    """

    def __init__(
        self,
        job: Job,
        monitors: Sequence[Monitor],
        engine: str,
        clock: Timekeeper | None = None,
        memory: Callable[[], int] | None = None,
    ) -> None:
        keep_large_blocks()
        self.job = job
        workers = job.setup.workers
        self.parameters = Parameters(job.module, job.setup.channels_last)
        self.server = self._server()
        self.equipment = Equipment(self.parameters, job.method, job.setup, self.planned_samples())
        self.record = Record(job, monitors, engine, self.server, clock, memory)
        self.clock = self.record.clock
        self.contexts: list[WorkerContext] = []
        self.links: list[Link] = []  # empty where workers read the live weights and push every step
        self.states: list[Any] = [None] * workers
        self.reason: str | None = None
        self._note = self.record.queue.append
        self.hopeless = [0] * workers  # steps in a row, by worker, whose loss was not finite
        self._settled = False  # for good: the run ends
        self.saver = job.checkpoints.saver if job.checkpoints is not None else None

    def _server(self, kind: type[Server] = Server) -> Server:
        """The server of the job's method."""
        method, setup = self.job.method, self.job.setup
        return kind(
            self.parameters,
            method.rule_for(setup.workers),
            setup.workers,
            method.rounds,
            self.planned_samples(),
            backup=method.backup,
            shards=setup.shards,
            seed=setup.seed,
            places=setup.places,
        )

    # --- workers ---

    def admit_workers(self, send: Send, send_now: Send | None = None, pull: Pull | None = None) -> None:
        """Makes every worker's context and replica, then binds the user's module to the shared weights.

        Args:
            send: hands an update to the server after a step.
            send_now: hands it over before the step computes; as `send` if left out.
            pull: copies the server's weights; the server's own if left out.
        """
        self._line = Line(send, send_now or send, pull or self.server.pull)
        for worker in range(self.job.setup.workers):
            context, link = self._equipped(worker)
            self.contexts.append(context)
            if link is not None:
                self.links.append(link)
        self.parameters.bind(self.job.module)

    def _equipped(self, worker: int, incarnation: int = 0) -> tuple[WorkerContext, Link | None]:
        """A worker's context, and its link if it has weights of its own, which are the server's of now."""
        job, line = self.job, self._line
        flat = self.parameters.flat.clone() if job.method.exchange is not None else None
        context = self.equipment.context(worker, job.module, flat, line.send, incarnation)
        return context, None if flat is None else self._link(context, flat, *line)

    def _link(self, context: WorkerContext, flat: Tensor, send: Send, send_now: Send, pull: Pull) -> Link:
        return self.equipment.link(context, self.local(context.worker, flat), pull, send, send_now)

    def replace_worker(self, worker: int) -> int:
        """Equips another in the place of a worker that has failed, whose push is refused from now on.

        What the worker held for itself begins anew: its copy of the weights, its exchange, its generator.

        Returns:
            Which life of the worker it is; the first was 0.
        """
        earlier = self.contexts[worker]
        incarnation = self.server.begin_life(worker)
        context, link = self._equipped(worker, incarnation)
        context.sequence = earlier.sequence
        self.contexts[worker] = context
        if link is not None:
            self.links[worker] = link
        self._stamp(worker)
        self.states[worker], self.hopeless[worker] = None, 0
        earlier.dissolve()
        return incarnation

    def _stamp(self, worker: int) -> None:
        """Has the pushes of a worker that was replaced bear the mark of its life."""
        slot, context = self.server.book.slots[worker], self.contexts[worker]
        if not slot.incarnation:
            return
        if self.links:  # which number their pushes by themselves
            self.links[worker].intercept(Life(slot.incarnation).stamping)
        else:
            life = Life(slot.incarnation, context.sequence - slot.sequence - 1)
            context.deliver = life.stamping(context.deliver)

    def local(self, worker: int, flat: Tensor) -> Local:
        """What a worker's exchange is made of."""
        return self.equipment.local(worker, flat, partial(self._pace, worker))

    def exchange(self, local: Local) -> Exchange:
        """A worker's half of the method."""
        assert self.job.method.exchange is not None
        return self.job.method.exchange(local)

    def outgoing(self, local: Local) -> Outgoing | None:
        """What a worker does to an update before it is sent."""
        return self.equipment.outgoing(local)

    def _pace(self, worker: int) -> float:
        """Steps of a worker as a share of the fastest worker's."""
        return pace(worker, [context.sequence for context in self.contexts])

    def begin_step(self, worker: int, segment: Segment, step: int) -> Lease | None:
        """A lease for this worker, and the weights that it starts from; None: nothing left."""
        source = self.job.source
        if self.job.method.leases == "fixed":
            lease = source.take_number(segment.number(step * self.job.setup.workers + worker))
        else:
            lease = source.take()
        if not self.links:
            context = self.contexts[worker]
            context.version, context.versions = self.server.version, self.server.versions()
        elif lease is not None:
            try:
                self.links[worker].begin()
            except BaseException:
                self.put_back(lease)
                raise
        return lease

    def put_back(self, lease: Lease) -> None:
        """The lease was not used: its batch will be, by whoever is to take its number."""
        if self.job.method.leases == "fixed":
            self.job.source.put_back(lease)
        else:
            self.job.source.give_back(lease)

    def may_start(self, worker: int, progress: Sequence[int]) -> bool:
        """Whether the worker may start a step: by the gate, and in rounds when its own is over."""
        method = self.job.method
        if method.rounds:
            return not self.server.awaits_round(worker)
        return method.gate.may_start(worker, progress)

    def settle(self, final: bool) -> bool:
        """Has the workers push what they hold back; whether there was anything. Everybody stands still.

        Args:
            final: the run ends here.
        """
        if not self.links or self._settled:
            return False
        self.server.readmit()
        found = [link.flush(final) for link in self.links]
        self._settled = final
        for worker, pushed in enumerate(found):
            if not pushed:
                self.server.retire(worker)
        return any(found)

    def end_step(
        self, context: WorkerContext, lease: Lease, report: StepReport, receipt: Receipt | None
    ) -> None:
        """Books a step whose update has been delivered."""
        self.job.source.acknowledge(lease)
        staleness = receipt.staleness if receipt is not None else NOT_PUSHED
        self._note(
            (
                context.worker,
                context.sequence,
                lease.number,
                report.samples,
                report.loss,
                staleness,
                self.clock.seconds(),
            )
        )
        context.sequence += 1
        self.hopeless[context.worker] = hopeless(context.worker, report.loss, self.hopeless[context.worker])

    # --- plan ---

    def planned_samples(self) -> int | None:
        """Examples of the whole run, if that is known beforehand."""
        return plan.planned_samples(self.job)

    def segments(self, begun: Segment | None = None) -> Iterator[Segment]:
        """The leases from one evaluation to the next; the caller evaluates after each.

        Args:
            begun: the segment that a checkpoint was taken in.
        """
        reason = yield from plan.segments(self.job, self.record.done, begun)
        self.reason = self.reason or reason

    # --- checkpoints ---

    def resume(self) -> Tree | None:
        """Puts everything back to where the checkpoint was taken, before the run is announced.

        Returns:
            The engine's place in its plan; None if the run begins anew.

        Raises:
            CheckpointError: the state does not fit; the module has tensors of its own again.
        """
        if self.job.requests is not None:
            self.job.requests.begin()
        checkpoints = self.job.checkpoints
        origin = checkpoints.origin if checkpoints is not None else None
        place = None
        if origin is not None:
            self.record.restore(origin.tree["record"], origin.events, str(origin.folder))
            self.record.before = origin.tree["identity"]["workers"]
            try:
                place = cut.restored(self, origin.tree)
            except BaseException:
                self.close()
                raise
        if self.saver is not None:
            self.saver.begin(self.clock.seconds(), origin.folder if origin is not None else None)
        return place

    def wants_workers(self) -> int | None:
        """Another number of workers, if somebody wants one that is possible; what is not is told."""
        if self.job.requests is None or (wanted := self.job.requests.pending()) is None:
            return None
        workers, now = self.job.setup.workers, self.clock.seconds()
        try:
            check_resizable(self.job, wanted)
        except ConfigurationError as error:
            self.record.emit(WorkersKept(workers, wanted, str(error), now))
            return None
        if wanted == workers:
            self.record.emit(WorkersChanged(workers, workers, now, 0.0))
            return None
        return wanted

    def worker_states(self) -> list[Tree]:
        """What each worker holds for itself, for a checkpoint; everybody stands between two steps."""
        return [cut.state_of(self, worker) for worker in range(self.job.setup.workers)]

    def restore_workers(self, states: Sequence[Tree], start: int) -> None:
        """Every worker holds what it held then.

        Args:
            states: of the workers; None of one that comes new.
            start: the number that such a worker counts its steps from.
        """
        for worker, state in enumerate(states):
            context, slot = self.contexts[worker], self.server.book.slots[worker]
            if state is None:  # it comes new, and counts as the others do
                context.sequence = start
                self.server.begin_life(worker)
            else:
                cut.give_back(self, worker, state)
                if not self.links and context.sequence > slot.sequence + 1:
                    self.server.begin_life(worker)  # its steps are counted from another number
            self._stamp(worker)

    def source_state(self) -> Tree:
        """Where the source stands, for a checkpoint."""
        return self.job.source.state()

    def wants_cut(self) -> bool:
        """Whether a checkpoint is due; what has come of earlier ones is told."""
        if self.saver is None:
            return False
        for outcome in self.saver.outcomes():
            self.record.emit(outcome)
        return self.saver.is_due(self.clock.seconds())

    def cut(self, place: Tree) -> Cut | None:
        """A copy of the state of the run, if it writes checkpoints; everybody stands between two steps.

        Args:
            place: where in its plan the engine is.
        """
        return None if self.saver is None else cut.taken(self, place)

    def save(self, state: Cut | None) -> None:
        """Begins to write a checkpoint; training goes on meanwhile."""
        if self.saver is not None and state is not None:
            self.saver.save(state)

    # --- evaluation and end ---

    def out_of_time(self) -> bool:
        """Whether the training clock has passed ``max_seconds``."""
        limit = self.job.stop.max_seconds
        if limit is None or self.clock.seconds() < limit:
            return False
        self.reason = "max_seconds"
        return True

    def evaluate(self, again: bool = False) -> None:
        """Measures the model; call it with the clock stopped and every worker standing still.

        Args:
            again: measure even if no example was used since the last time.
        """
        self._copy_counters()
        self.record.tick(force=True)
        evaluation, history = self.job.evaluation, self.record.history
        if evaluation is None or (
            history and history[-1].samples == self.record.done().samples and not again
        ):
            return
        self.record.emit(Evaluating())
        self.record.evaluated(measured(self.job.module, evaluation.measure))
        self._check_target()

    def _check_target(self) -> None:
        stop, history = self.job.stop, self.record.history
        if stop.target is None or not stop.is_reached(history[-1].metrics):
            return
        if len(history) > 1 and stop.is_reached(history[-2].metrics):
            self.record.target_seconds = history[-2].seconds
            self.reason = "target"

    def measure_what_there_is(self) -> None:
        """The last evaluation of an interrupted run; another Ctrl-C does without it."""
        with suppress(KeyboardInterrupt):
            self.settle(final=True)
            self.evaluate()

    def end(self) -> None:
        """The leases are used up: what workers still hold back is pushed, and the model measured again."""
        if self.reason != "target" and self.settle(final=True):
            self.evaluate(again=True)

    def stop_clock(self) -> None:
        """Stops the clock when the device has done all it was given."""
        if self.parameters.flat.is_cuda:
            torch.cuda.synchronize(self.parameters.flat.device)
        self.clock.stop()

    def _copy_counters(self) -> None:
        """Buffers that are no running statistics, such as BatchNorm's batch count, are worker 0's."""
        if not self.contexts:
            return
        own = dict(self.contexts[0].module.named_buffers())
        statistics = {entry.name for entry in self.parameters.statistics_layout.entries}
        for name, buffer in self.job.module.named_buffers():
            if name not in statistics and own[name] is not buffer and own[name].shape == buffer.shape:
                buffer.copy_(own[name])

    def close(self) -> None:
        """Gives the user's module tensors of its own again, and lets go of the replicas."""
        self.clock.stop()
        try:
            self._copy_counters()
        finally:
            Parameters.release(self.job.module)
            for context in self.contexts:
                context.dissolve()
            self.contexts, self.states, self.links = [], [], []

    def fail(self, error: BaseException) -> None:
        """Tells every monitor that the run ended with an error, those too that come after one that fails."""
        self.reason = "error"
        self.record.hush()
        if isinstance(error, WorkerError):
            self.record.emit(WorkerFailed(error.worker, error.sequence, error.reason))
        self._finish()

    def result(self) -> Result:
        """The totals; the run is over."""
        return self.record.result(self._finish())

    def _finish(self) -> RunFinished:
        if self.saver is not None:
            self.saver.wait()
            self.wants_cut()
        return self.record.finish(self.reason)

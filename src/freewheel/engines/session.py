"""What every engine shares: the workers' contexts, the clock, the schedule of evaluations, the record.

An engine decides where and when steps run. Everything else about a run is here, so that engines agree.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor

from freewheel.engines import plan
from freewheel.engines.base import measured, quiet
from freewheel.engines.clock import Clock, Timekeeper
from freewheel.engines.plan import Done, Segment
from freewheel.errors import TrainingError, WorkerError
from freewheel.events import (
    NOT_PUSHED,
    Dropped,
    Evaluated,
    Evaluating,
    Event,
    Monitor,
    RunFinished,
    RunStarted,
    Steps,
    Tick,
    WorkerFailed,
    emit,
)
from freewheel.exchanges import Exchange, Local
from freewheel.job import Job, Result, Worker
from freewheel.link import Link, Outgoing, Pull, Send
from freewheel.machine import keep_large_blocks
from freewheel.params import Parameters
from freewheel.server import Receipt, Server
from freewheel.sources import Lease
from freewheel.tasks import StepReport, WorkerContext

TICK_S = 0.25
HOPELESS = 20  # steps in a row with a loss that is not finite, before the run is given up


@dataclass
class Tally:
    """What the finished steps add up to; only the thread that drains the record writes it."""

    samples: list[int]
    steps: list[int]
    staleness: Counter[int] = field(default_factory=Counter)
    loss_sum: float = 0.0
    staleness_sum: float = 0.0
    recent: int = 0
    pushed: int = 0
    dropped: dict[int, Counter[str]] = field(default_factory=dict)


class Session:
    """One run under way.

    Args:
        job: what to run.
        monitors: who hears of it.
        engine: its name, for the record.
        clock: a virtual one; None measures time and memory of this process.
    """

    def __init__(
        self, job: Job, monitors: Sequence[Monitor], engine: str, clock: Timekeeper | None = None
    ) -> None:
        keep_large_blocks()
        self.job = job
        self.monitors = monitors
        self.engine = engine
        workers = job.setup.workers
        self.parameters = Parameters(job.module, job.setup.channels_last)
        self.server = self._server()
        rule = job.method.rule_for(workers).describe
        self.config = {**job.config, "rule": rule, "method_settings": dict(job.method.settings)}
        self.contexts: list[WorkerContext] = []
        self.links: list[Link] = []  # empty where workers read the live weights and push every step
        self.states: list[Any] = [None] * workers
        self.clock: Timekeeper = Clock() if clock is None else clock
        self.records: deque[tuple[int, int, int, int, float, int, float]] = deque()
        self.events: list[Event] = []
        self.history: list[Evaluated] = []
        self.target_seconds: float | None = None
        self.reason: str | None = None
        self._tally = Tally([0] * workers, [0] * workers)
        self._hopeless = [0] * workers
        self._settled = False  # for good: the run ends
        self._wall_began = time.perf_counter()
        self._process = psutil.Process() if clock is None else None
        self._start_rss = self._peak_rss = self._rss()
        self._last_tick = 0.0

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
        )

    def _rss(self) -> int:
        """Resident memory of this process; 0 where the workers of the record are not in it."""
        return int(self._process.memory_info().rss) if self._process is not None else 0

    # --- workers ---

    def admit_workers(self, send: Send, send_now: Send | None = None, pull: Pull | None = None) -> None:
        """Makes every worker's context and replica, then binds the user's module to the shared weights.

        Args:
            send: hands an update to the server after a step.
            send_now: hands it over before the step computes; as `send` if left out.
            pull: copies the server's weights; the server's own if left out.
        """
        job = self.job
        for worker in range(job.setup.workers):
            flat = self.parameters.flat.clone() if job.method.exchange is not None else None
            module, weights, statistics = self.parameters.replica(job.module, flat)
            if not job.module.training:
                module.train()
            seed = job.setup.seed
            generator = torch.Generator().manual_seed((seed << 20) + worker)
            shared = self.parameters.statistics
            context = WorkerContext(worker, seed, module, weights, statistics, shared, send, generator)
            self.contexts.append(context)
            if flat is not None:
                self._link(context, flat, send, send_now or send, pull or self.server.pull)
        self.parameters.bind(job.module)

    def _link(self, context: WorkerContext, flat: Tensor, send: Send, send_now: Send, pull: Pull) -> None:
        local = self.local(context.worker, flat)
        link = Link(
            self.exchange(local),
            context,
            pull,
            send,
            send_now,
            self.outgoing(local),
            self.job.method.in_flight,
        )
        context.deliver = link.deliver
        self.links.append(link)

    def local(self, worker: int, flat: Tensor) -> Local:
        """What a worker's exchange is made of."""
        entries = self.parameters.layout.trainable
        weights = [entry.view(flat) for entry in entries]
        setup = self.job.setup
        pace = partial(self._pace, worker)
        return Local(flat, entries, weights, worker, setup.workers, self.planned_samples(), pace)

    def exchange(self, local: Local) -> Exchange:
        """A worker's half of the method."""
        assert self.job.method.exchange is not None
        return self.job.method.exchange(local)

    def outgoing(self, local: Local) -> Outgoing | None:
        """What a worker does to an update before it is sent."""
        rule = self.job.method.compression
        return None if rule is None else Outgoing(rule, local, self.job.setup.seed)

    def _pace(self, worker: int) -> float:
        """Steps of a worker as a share of the fastest worker's."""
        most = max(context.sequence for context in self.contexts)
        return self.contexts[worker].sequence / most if most else 1.0

    def begin_step(self, worker: int, segment: Segment, step: int) -> Lease | None:
        """A lease for this worker, and the weights that it starts from; None: nothing left."""
        source = self.job.source
        if self.job.method.leases == "fixed":
            lease = source.take_number(segment.first + step * self.job.setup.workers + worker)
        else:
            lease = source.take()
        if not self.links:
            context = self.contexts[worker]
            context.version, context.versions = self.server.version, self.server.versions()
        elif lease is not None:
            self.links[worker].begin()
        return lease

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
        self._settled = final
        self.server.readmit()
        found = [link.flush(final) for link in self.links]
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
        self.records.append(
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
        if math.isfinite(report.loss):
            self._hopeless[context.worker] = 0
        else:
            self._count_hopeless(context.worker, report.loss)

    def _count_hopeless(self, worker: int, loss: float) -> None:
        self._hopeless[worker] += 1
        if self._hopeless[worker] >= HOPELESS:
            raise TrainingError(
                f"training diverged: the loss was {loss} in {HOPELESS} steps of worker {worker} in a row;"
                " lower `lr`, clip gradients with rule=chain(clip(1.0), sgd(lr)), or look for bad values in"
                " the data"
            )

    # --- plan ---

    def planned_samples(self) -> int | None:
        """Examples of the whole run, if that is known beforehand."""
        return plan.planned_samples(self.job)

    def segments(self) -> Iterator[Segment]:
        """The leases from one evaluation to the next; the caller evaluates after each."""
        reason = yield from plan.segments(
            self.job, lambda: Done(sum(self._tally.steps), sum(self._tally.samples))
        )
        self.reason = self.reason or reason

    # --- record ---

    def announce(self) -> None:
        """Tells monitors that the run begins."""
        job = self.job
        self.emit(
            RunStarted(
                method=job.method.name,
                engine=self.engine,
                workers=job.setup.workers,
                batch_size=job.source.batch_size,
                seed=job.setup.seed,
                planned_samples=self.planned_samples(),
                max_seconds=job.stop.max_seconds,
                trainable=sum(entry.numel for entry in self.parameters.layout.trainable),
                target=job.stop.target,
                config=self.config,
            )
        )

    def emit(self, event: Event) -> None:
        """Keeps the event, unless it is about single steps, and hands it to the monitors."""
        if not isinstance(event, Steps):
            self.events.append(event)
        emit(event, self.monitors)

    def drain(self) -> None:
        """Collects the finished steps since the last call."""
        items = [self.records.popleft() for _ in range(len(self.records))]
        if not items:
            return
        worker, sequence, lease, samples, loss, staleness, seconds = (
            list(column) for column in zip(*items, strict=True)
        )
        tally = self._tally
        for w, n in zip(worker, samples, strict=True):
            tally.samples[w] += n
            tally.steps[w] += 1
        pushed = [value for value in staleness if value != NOT_PUSHED]
        tally.staleness.update(pushed)
        tally.recent += len(items)
        tally.pushed += len(pushed)
        tally.loss_sum += sum(loss)
        tally.staleness_sum += sum(pushed)
        if self.monitors:
            emit(Steps(worker, sequence, lease, samples, loss, staleness, seconds), self.monitors)

    def tick(self, force: bool = False) -> None:
        """Drains the record and tells monitors how the run stands, a few times a second."""
        now = self.clock.seconds()
        if not force and now - self._last_tick < TICK_S:
            return
        self._last_tick = now
        self.drain()
        rss = self._rss()
        self._peak_rss = max(self._peak_rss, rss)
        tally = self._tally
        recent = tally.recent
        loss = tally.loss_sum / recent if recent else math.nan
        staleness = tally.staleness_sum / tally.pushed if tally.pushed else math.nan
        tally.loss_sum = tally.staleness_sum = 0.0
        tally.recent = tally.pushed = 0
        self.emit(Tick(now, list(tally.samples), loss, staleness, rss, self.clock.cpu_seconds()))
        self._report_drops()

    def _report_drops(self) -> None:
        for worker, counts in self.server.dropped().items():
            known = self._tally.dropped.get(worker, Counter())
            for reason, count in counts.items():
                if known[reason] != count:
                    self.emit(Dropped(worker, reason, count))
            self._tally.dropped[worker] = counts

    def out_of_time(self) -> bool:
        """Whether the training clock has passed ``max_seconds``."""
        limit = self.job.stop.max_seconds
        if limit is None or self.clock.seconds() < limit:
            return False
        self.reason = "max_seconds"
        return True

    # --- evaluation and end ---

    def evaluate(self, again: bool = False) -> None:
        """Measures the model; call it with the clock stopped and every worker standing still.

        Args:
            again: measure even if no example was used since the last time.
        """
        self._copy_counters()
        self.tick(force=True)
        evaluation = self.job.evaluation
        samples = sum(self._tally.samples)
        if evaluation is None or (self.history and self.history[-1].samples == samples and not again):
            return
        self.emit(Evaluating())
        metrics = measured(self.job.module, evaluation.measure)
        of_epoch = self.job.source.samples
        epoch = samples / of_epoch if of_epoch else math.nan
        self.history.append(Evaluated(self.clock.seconds(), samples, epoch, metrics))
        self.emit(self.history[-1])
        self._check_target()

    def _check_target(self) -> None:
        stop = self.job.stop
        if stop.target is None or not stop.is_reached(self.history[-1].metrics):
            return
        if len(self.history) > 1 and stop.is_reached(self.history[-2].metrics):
            self.target_seconds = self.history[-2].seconds
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
        self.monitors = [quiet(monitor) for monitor in self.monitors]
        if isinstance(error, WorkerError):
            self.emit(WorkerFailed(error.worker, error.sequence, str(error)))
        self.drain()
        self._finish()

    def result(self) -> Result:
        """The totals; the run is over."""
        self.drain()
        self._report_drops()
        finished = self._finish()
        workers = tuple(
            Worker(w, samples, steps, samples / finished.seconds if finished.seconds else 0.0)
            for w, (samples, steps) in enumerate(
                zip(finished.worker_samples, finished.worker_steps, strict=True)
            )
        )
        totals = asdict(finished)
        for name in ("worker_samples", "worker_steps"):
            del totals[name]
        config = {**self.config, **self._identity()}
        return Result(
            module=self.job.module,
            history=tuple(self.history),
            workers=workers,
            config=config,
            events=tuple(self.events),
            **totals,
        )

    def _identity(self) -> dict[str, Any]:
        setup = self.job.setup
        return {
            "method": self.job.method.name,
            "engine": self.engine,
            "workers": setup.workers,
            "batch_size": self.job.source.batch_size,
            "seed": setup.seed,
        }

    def _wall_seconds(self) -> float:
        virtual = self._process is None
        return self.clock.seconds() if virtual else time.perf_counter() - self._wall_began

    def _finish(self) -> RunFinished:
        tally = self._tally
        finished = RunFinished(
            reason=self.reason or "interrupted",
            seconds=self.clock.seconds(),
            wall_seconds=self._wall_seconds(),
            cpu_seconds=self.clock.cpu_seconds(),
            samples=sum(tally.samples),
            steps=sum(tally.steps),
            worker_samples=list(tally.samples),
            worker_steps=list(tally.steps),
            staleness=dict(sorted(tally.staleness.items())),
            ledger=self.server.ledger(),
            peak_rss_bytes=self._peak_rss,
            start_rss_bytes=self._start_rss,
            metrics=dict(self.history[-1].metrics) if self.history else {},
            target_seconds=self.target_seconds,
        )
        self.emit(finished)
        return finished

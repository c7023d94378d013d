"""The record of a run: what finished steps add up to, and what monitors hear of it."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import psutil

from freewheel.engines import plan
from freewheel.engines.base import quiet
from freewheel.engines.clock import Clock, Timekeeper, VirtualClock
from freewheel.engines.plan import Done
from freewheel.events import (
    NOT_PUSHED,
    Dropped,
    Evaluated,
    Event,
    Monitor,
    Resumed,
    RunFinished,
    RunStarted,
    Steps,
    Tick,
    WorkersChanged,
    emit,
)
from freewheel.job import Job, Result, Worker
from freewheel.server import Server

TICK_S = 0.25


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


@final
class Record:
    """What has happened in one run.

    Args:
        job: what is run.
        monitors: who hears of it.
        engine: its name.
        server: whose ledger and drops are told.
        clock: a virtual one, or one of several processes; None measures this process.
        memory: bytes that the run holds; None measures this process, or nothing where time is virtual.

    Attributes:
        queue: finished steps that nobody has collected yet; workers append from their threads.
        events: everything that was emitted but the single steps.
        history: the evaluations.
        target_seconds: when the target was reached.
    """

    def __init__(
        self,
        job: Job,
        monitors: Sequence[Monitor],
        engine: str,
        server: Server,
        clock: Timekeeper | None = None,
        memory: Callable[[], int] | None = None,
    ) -> None:
        self.job = job
        self.monitors = monitors
        self.engine = engine
        self.server = server
        rule = job.method.rule_for(job.setup.workers).describe
        self.config = {**job.config, "rule": rule, "method_settings": dict(job.method.settings)}
        self.clock: Timekeeper = Clock() if clock is None else clock
        self.queue: deque[tuple[int, int, int, int, float, int, float]] = deque()
        self.events: list[Event] = []
        self.history: list[Evaluated] = []
        self.target_seconds: float | None = None
        places = job.setup.places
        self._tally = Tally([0] * places, [0] * places)
        self._wall_began = time.perf_counter()
        self._virtual = isinstance(self.clock, VirtualClock)
        self._memory = memory or (_nothing if self._virtual else _resident)
        self._start_rss = self._peak_rss = self._memory()
        self._last_tick = 0.0
        self._earlier: list[Event] = []  # of the run until the checkpoint that it goes on from
        self._resumed: Resumed | None = None
        self.before: int | None = None  # workers when that checkpoint was taken

    def done(self) -> Done:
        """How far the run has come, by the steps that were collected."""
        return Done(sum(self._tally.steps), sum(self._tally.samples))

    # --- checkpoints ---

    def state(self) -> dict[str, Any]:
        """The totals until now, for a checkpoint; of the events, which the run directory has, the number."""
        self.drain()
        tally = {**vars(self._tally), "staleness": dict(self._tally.staleness)}
        tally["dropped"] = {worker: dict(counts) for worker, counts in self._tally.dropped.items()}
        return {
            "tally": tally,
            "history": [asdict(evaluated) for evaluated in self.history],
            "target_seconds": self.target_seconds,
            "events": len(self.events),
            "seconds": self.clock.seconds(),
            "cpu_seconds": self.clock.cpu_seconds(),
            "wall_seconds": self._wall_seconds(),
            "start_rss": self._start_rss,
            "peak_rss": self._peak_rss,
        }

    def restore(self, state: Mapping[str, Any], events: Sequence[Event], checkpoint: str) -> None:
        """Goes on from these totals.

        Args:
            state: of the checkpoint.
            events: what had been emitted until then, as far as it is known.
            checkpoint: the checkpoint's folder.
        """
        tally = self._tally = Tally(**{**state["tally"], "staleness": Counter(state["tally"]["staleness"])})
        tally.dropped = {worker: Counter(counts) for worker, counts in tally.dropped.items()}
        self.history = [Evaluated(**evaluated) for evaluated in state["history"]]
        self.target_seconds = state["target_seconds"]
        self.clock.restore(state["seconds"], state["cpu_seconds"])
        self._wall_began -= state["wall_seconds"]
        self._start_rss, self._peak_rss = state["start_rss"], max(self._peak_rss, state["peak_rss"])
        self._last_tick = state["seconds"]
        self._earlier = [event for event in events if not isinstance(event, RunStarted)]
        self._resumed = Resumed(checkpoint, state["seconds"], list(tally.samples), sum(tally.steps))

    def succeed(self, earlier: Record, state: Mapping[str, Any]) -> None:
        """Goes on in the place of another record of the same run; it is not announced again.

        Args:
            earlier: the other.
            state: its totals, with places for everybody who works now.
        """
        self.restore(state, (), "")
        self._wall_began, self.events = earlier._wall_began, earlier.events

    # --- under way ---

    def announce(self) -> None:
        """Tells monitors that the run begins, and where, if it goes on from a checkpoint."""
        self._announce()
        self.events += self._earlier
        if self._resumed is not None:
            self.emit(self._resumed)
            workers = self.job.setup.workers
            if self.before is not None and self.before != workers:
                self.emit(WorkersChanged(self.before, workers, self._resumed.seconds, 0.0))

    def _announce(self) -> None:
        job = self.job
        self.emit(
            RunStarted(
                method=job.method.name,
                engine=self.engine,
                workers=job.setup.workers,
                batch_size=job.source.batch_size,
                seed=job.setup.seed,
                planned_samples=plan.planned_samples(job),
                max_seconds=job.stop.max_seconds,
                trainable=sum(entry.numel for entry in self.server.parameters.layout.trainable),
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
        items = [self.queue.popleft() for _ in range(len(self.queue))]
        if not items:
            return
        # Not zip(*items): an iterator for every item would set off the garbage collector each time.
        steps = Steps(
            worker=[item[0] for item in items],
            sequence=[item[1] for item in items],
            lease=[item[2] for item in items],
            samples=[item[3] for item in items],
            loss=[item[4] for item in items],
            staleness=[item[5] for item in items],
            seconds=[item[6] for item in items],
        )
        tally = self._tally
        for w, n in zip(steps.worker, steps.samples, strict=True):
            tally.samples[w] += n
            tally.steps[w] += 1
        pushed = [value for value in steps.staleness if value != NOT_PUSHED]
        tally.staleness.update(pushed)
        tally.recent += len(items)
        tally.pushed += len(pushed)
        tally.loss_sum += sum(steps.loss)
        tally.staleness_sum += sum(pushed)
        if self.monitors:
            emit(steps, self.monitors)

    def tick(self, force: bool = False) -> None:
        """Drains the queue and tells monitors how the run stands, a few times a second."""
        now = self.clock.seconds()
        if not force and now - self._last_tick < TICK_S:
            return
        self._last_tick = now
        self.drain()
        rss = self._memory()
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

    def evaluated(self, metrics: dict[str, float]) -> None:
        """Books an evaluation of the model as it is now."""
        samples, of_epoch = self.done().samples, self.job.source.samples
        epoch = samples / of_epoch if of_epoch else math.nan
        self.history.append(Evaluated(self.clock.seconds(), samples, epoch, metrics))
        self.emit(self.history[-1])

    # --- the end ---

    def hush(self) -> None:
        """Errors of monitors are suppressed from now on."""
        self.monitors = [quiet(monitor) for monitor in self.monitors]

    def finish(self, reason: str | None) -> RunFinished:
        """Tells monitors that the run is over, and why; None: it was interrupted."""
        self.drain()
        self._report_drops()
        tally = self._tally
        finished = RunFinished(
            reason=reason or "interrupted",
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

    def _wall_seconds(self) -> float:
        return self.clock.seconds() if self._virtual else time.perf_counter() - self._wall_began

    def result(self, finished: RunFinished) -> Result:
        """What came of the run, for who called ``fit``."""
        workers = tuple(
            Worker(w, samples, steps, samples / finished.seconds if finished.seconds else 0.0)
            for w, (samples, steps) in enumerate(
                zip(finished.worker_samples, finished.worker_steps, strict=True)
            )
        )
        totals = asdict(finished)
        for name in ("worker_samples", "worker_steps"):
            del totals[name]
        return Result(
            module=self.job.module,
            history=tuple(self.history),
            workers=workers,
            config={**self.config, **self._identity()},
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


def _resident() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def _nothing() -> int:
    """The memory of workers that are simulated."""
    return 0

"""``engine="auto"``: threads or processes, by a short measurement of the user's step.

Threads share the interpreter's lock: what of a step is Python, and not PyTorch, is done by one of them at a
time. Processes do not, but they take time to start, and where updates are served by the main process, a
message a step. So a few steps are run by one thread and by several, on a copy of the model; how much less
than in proportion several get done is what threads waste.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np

from freewheel.engines.base import Engine
from freewheel.engines.plan import planned_samples
from freewheel.engines.processes import Processes
from freewheel.engines.threads import Threads
from freewheel.errors import ConfigurationError, FreewheelError
from freewheel.events import Monitor
from freewheel.job import Job, Result, Setup, Stop
from freewheel.machine import cores
from freewheel.methods import hogwild
from freewheel.randomness import generators_kept
from freewheel.sources import Indexed, Source

PROBE_S = 0.12  # of training in each of the measurements
ROUNDS = 3  # of them; the median counts
FIRST_START_S = 3.0  # until the first worker processes of a program are there
START_S = 0.05  # those of later runs; both without what each worker takes
START_EACH_S = 0.1
SERVED_S = 2e-4  # of a step whose update the main process applies, more than on threads
SCALING = 0.9  # of processes: what several have of several times one, for they share caches and memory
WORTH = 0.9  # processes must save a tenth, or it is not worth their being harder to debug


class Choice(NamedTuple):
    """An engine, and why it was chosen."""

    engine: Engine
    reason: str


class Rates(NamedTuple):
    """What was measured.

    Attributes:
        step_s: seconds of a step of one thread alone.
        threads: how many ran at the same time, in the other measurement.
        efficiency: how many times as many steps they did, over how many they were.
    """

    step_s: float
    threads: int
    efficiency: float


Measure = Callable[[Job], Rates]


@final
@dataclass(frozen=True)
class Auto:
    """Chooses between threads and processes when it knows the job, and says why.

    One worker, a model on a GPU, or something that cannot be sent to a process: threads, at once. Else a
    fraction of a second of training on a copy of the model tells how much threads get in each other's way.
    The choice is part of the configuration of the run, ``result.config["engine_reason"]``.

    Example:
        >>> Auto().name
        'auto'
    """

    name: str = "auto"

    def check(self, job: Job) -> None:
        """Nothing: threads can run every job."""

    def run(self, job: Job, monitors: Sequence[Monitor] = ()) -> Result:
        """Chooses, and trains."""
        engine, reason = chosen(job)
        return engine.run(replace(job, config={**job.config, "engine_reason": reason}), monitors)


def chosen(job: Job, measure: Measure | None = None) -> Choice:
    """The engine for a job.

    Args:
        job: what is to run; nothing of it is changed.
        measure: gives the rates; the default measures them.
    """
    workers = job.setup.workers
    if workers == 1:
        return Choice(Threads(), "one worker waits for nobody")
    if job.trace is not None:
        return Choice(Threads(), "a run that is recorded runs on threads")
    try:
        Processes().check(job)
    except ConfigurationError as error:
        return Choice(Threads(), f"processes cannot run this: {str(error).partition(';')[0]}")
    return by_rates(job, (measure or measured)(job), START_S if _prepared() else FIRST_START_S)


def _prepared() -> bool:
    from freewheel.engines.processes import nursery

    return nursery.is_prepared()


def by_rates(job: Job, rates: Rates, start_s: float = FIRST_START_S) -> Choice:
    """The engine that is expected to be done first.

    Args:
        job: what is to run.
        rates: what was measured.
        start_s: until worker processes begin to be there.
    """
    workers, steps = job.setup.workers, _steps(job, rates)
    parallel = min(workers, cores())
    thread_s = rates.step_s / (parallel * max(rates.efficiency, 1 / parallel))  # a step of the run
    served = SERVED_S if _served(job) else 0.0
    process_s = (rates.step_s / SCALING + served) / parallel
    start = start_s + START_EACH_S * workers
    words = (
        f"{rates.threads} threads get {rates.threads * rates.efficiency:.1f} times one's work done at"
        f" {1e3 * rates.step_s:.2g} ms a step"
    )
    if process_s >= WORTH * thread_s:
        return Choice(Threads(), words)
    if math.isinf(steps):
        return Choice(Processes(), words)
    if start + steps * process_s >= WORTH * steps * thread_s:
        return Choice(Threads(), f"{words}, but the run is too short for processes to start")
    waste = 100 * (1 - rates.efficiency)
    return Choice(Processes(), f"{words}, so {waste:.0f} % of {steps * thread_s:,.0f} s would be wasted")


def _steps(job: Job, rates: Rates) -> float:
    """Of all workers; infinite if nothing tells."""
    planned, seconds = planned_samples(job), job.stop.max_seconds
    known = math.inf if planned is None else planned / job.source.batch_size
    if seconds is None:
        return known
    return min(known, seconds * job.setup.workers * rates.efficiency / rates.step_s)


def _served(job: Job) -> bool:
    """Whether the main process would apply the updates."""
    method = job.method
    return method.rounds or not method.gate.open or method.rule_for(job.setup.workers).exclusive


# --- measuring ---


def measured(job: Job) -> Rates:
    """Runs the job's step on a copy of the model, by one thread and by several, in turn.

    The data are read, but nobody's position in them changes, nor any generator. An error is left for the run
    itself: its step is then said to scale perfectly.
    """
    several = min(job.setup.workers, cores())
    one_s, all_s = [], []
    try:
        with _generators_kept(job):
            for _ in range(ROUNDS):
                one_s.append(_seconds_a_step(job, 1))
                all_s.append(_seconds_a_step(job, several))
    except FreewheelError:
        return Rates(1e-3, several, 1.0)
    one, every = sorted(one_s)[ROUNDS // 2], sorted(all_s)[ROUNDS // 2]
    return Rates(one, several, min(1.0, one / (several * every)))


def _seconds_a_step(job: Job, threads: int) -> float:
    setup = job.setup
    trial = Job(
        copy.deepcopy(job.module),
        job.task,
        hogwild(1e-9, momentum=0.0),
        _probed(job.source),
        Stop(max_seconds=PROBE_S),
        Setup(threads, setup.intra_op_threads, setup.seed, setup.channels_last),
    )
    result = Threads().run(trial)
    if result.reason == "interrupted":
        raise KeyboardInterrupt
    return result.seconds / max(result.steps, 1)


def _probed(source: Source) -> Source:
    """The batches of the source, read independently of it; of one that is a stream always the first."""
    if isinstance(source, Indexed):
        twin = copy.copy(source)
        twin.open(0, 0)
        return twin
    batch = source.first()
    return Indexed(lambda indices: batch, source.batch_size, source.batch_size, shuffle=False)


@contextmanager
def _generators_kept(job: Job) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with generators_kept(job.module):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

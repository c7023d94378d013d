"""``inject``: faults in the runs that begin while it is entered, and which of them fired."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np

from freewheel import injection
from freewheel.errors import ConfigurationError
from freewheel.job import Job
from freewheel.link import Link
from freewheel.server import Receipt
from freewheel.sources import Lease
from freewheel.tasks import StepReport, Task, WorkerContext
from freewheel.testing.faults import KINDS, REPEATS, SPOILS, Fault, happen, spoil
from freewheel.update import Update

FOREVER = 10**9


@dataclass(frozen=True)
class Storm:
    """Faults at random; see :func:`storm`."""

    every_s: float
    kinds: tuple[str, ...] = ("kill",)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.every_s > 0:
            raise ConfigurationError(f"`every_s` must be seconds > 0, got {self.every_s!r}")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ConfigurationError(f"`kinds` must be some of {', '.join(KINDS)}, got {self.kinds!r}")

    def draw(self, number: int, workers: int) -> Fault:
        """The fault with this number: of which kind, and to whom."""
        random = np.random.default_rng([self.seed, number])
        kind = self.kinds[int(random.integers(len(self.kinds)))]
        return Fault(kind, int(random.integers(workers)), 0, seconds=FOREVER if kind == "hang" else 0.0)


def storm(every_s: float, kinds: tuple[str, ...] = ("kill",), seed: int = 0) -> Storm:
    """A fault to a random worker every so many seconds, for as long as the run goes on.

    Which kind comes when and to whom follows from the seed; in which step, from when the worker gets there.

    Args:
        every_s: seconds of real time between two.
        kinds: names of the functions of this module that make faults.
        seed: of the kinds and workers.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> storm(every_s=1.0, kinds=("kill", "fail"), seed=3).draw(0, workers=4).kind in ("kill", "fail")
        True
    """
    return Storm(every_s, kinds, seed)


@final
class Injected:
    """What became of the faults.

    Attributes:
        faults: those that were to happen.
    """

    def __init__(self, faults: tuple[Fault, ...], storms: tuple[Storm, ...]) -> None:
        self.faults = faults
        self._storms = storms
        self._folder: Path | None = None
        self._fired: list[str] = []

    def __enter__(self) -> Injected:
        self._folder = Path(tempfile.mkdtemp(prefix="freewheel-faults-"))
        injection.wraps.append(self._wrap)
        return self

    def __exit__(self, *_: object) -> None:
        injection.wraps.remove(self._wrap)
        self._fired = self.fired
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    @property
    def fired(self) -> list[str]:
        """The faults that have happened, in order, as text; deaths of processes do not lose any."""
        if self._folder is None:
            return list(self._fired)
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [path.read_text(encoding="utf-8") or path.name for path in files]

    @property
    def all_fired(self) -> bool:
        """Whether every single fault has happened; storms do not count."""
        return {str(fault) for fault in self.faults} <= set(self.fired)

    def _wrap(self, job: Job, engine: str) -> Job:
        workers = job.setup.workers
        for fault in self.faults:
            _check(fault, engine, workers)
        for one in self._storms:
            for kind in one.kinds:
                _check(Fault(kind, 0, 0), engine, workers)
        assert self._folder is not None
        plan = _Plan(str(self._folder), self.faults, self._storms, workers, time.time())
        return replace(job, task=_Faulty(job.task, plan))


def inject(*faults: Fault | Storm) -> Injected:
    """Has faults happen in the runs that begin in this ``with`` statement; each happens once.

    Args:
        faults: made by :func:`kill` and its like, and :func:`storm`.

    Returns:
        A context manager; its value tells which faults have fired.

    Raises:
        ConfigurationError: a run begins that cannot have one of the faults; the message names it.

    Example:
        >>> import torch, freewheel
        >>> from freewheel.testing import duplicate, inject
        >>> x = torch.randn(256, 8); y = (x.sum(1) > 0).long()
        >>> with inject(duplicate(worker=0, step=3)) as injected:
        ...     result = freewheel.fit(torch.nn.Linear(8, 2), (x, y), loss=torch.nn.CrossEntropyLoss(),
        ...                            workers=2, epochs=20)
        >>> injected.fired, result.ledger["duplicates"]
        (['duplicate(worker=0, step=3)'], 1)
    """
    single = tuple(one for one in faults if isinstance(one, Fault))
    storms = tuple(one for one in faults if isinstance(one, Storm))
    if len(single) + len(storms) != len(faults):
        raise ConfigurationError(
            f"`faults` must be made by the functions of freewheel.testing, such as kill(1, 5), got {faults!r}"
        )
    return Injected(single, storms)


def _check(fault: Fault, engine: str, workers: int) -> None:
    if engine == "simulated":
        raise ConfigurationError(
            f"{fault} cannot be injected into a simulation; give freewheel.Simulated(faults=[...])"
        )
    if fault.worker >= workers:
        raise ConfigurationError(f"{fault} names a worker that the run does not have: it has {workers}")
    if fault.ends_a_process and engine != "processes":
        raise ConfigurationError(
            f"{fault} ends the process of a worker, but `engine` is {engine!r}, where workers have none of"
            " their own; use engine='processes', or fail()"
        )
    if fault.during == "checkpoint" and engine != "processes":
        raise ConfigurationError(
            f"{fault} happens when a worker hands over its state, but with `engine` {engine!r} the main"
            " thread reads it; use engine='processes'"
        )


@dataclass(frozen=True)
class _Plan:
    """What is to happen; every worker has a copy, and all see the same folder."""

    folder: str
    faults: tuple[Fault, ...]
    storms: tuple[Storm, ...]
    workers: int
    began: float

    @property
    def in_checkpoints(self) -> bool:
        """Whether anything is to happen in a checkpoint."""
        return any(fault.during == "checkpoint" for fault in self.faults)

    def due(self, worker: int, step: int) -> list[Fault]:
        """What is to happen in this step, whether it has happened before or not."""
        found = [fault for fault in self.faults if fault.during != "checkpoint" and fault.hits(worker, step)]
        for one in self.storms:
            number = int((time.time() - self.began) / one.every_s)
            drawn = one.draw(number, self.workers)
            if number and drawn.worker == worker:
                found.append(drawn.at(worker, step))
        return found

    def due_in_checkpoint(self, worker: int, steps: int) -> list[Fault]:
        """What is to happen in the first checkpoint after so many steps of the worker."""
        return [
            fault
            for fault in self.faults
            if fault.during == "checkpoint" and fault.worker == worker and fault.step <= steps
        ]

    def claim(self, fault: Fault) -> bool:
        """Whether the fault happens now, for the first time."""
        number = next((i for i, one in enumerate(self.faults) if one == fault), None)
        name = f"fault-{number}" if number is not None else self._gust()
        try:
            handle = os.open(os.path.join(self.folder, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(handle, str(fault).encode())
        os.close(handle)
        return True

    def _gust(self) -> str:
        every = min(one.every_s for one in self.storms)
        return f"storm-{int((time.time() - self.began) / every)}"


@final
@dataclass(frozen=True)
class _Faulty:
    """A task with faults."""

    task: Task[Any]
    plan: _Plan
    first: dict[int, Update] = field(default_factory=dict)  # what each worker has pushed first of all

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "task":
            raise AttributeError(name)
        return getattr(self.task, name)

    def init(self, context: WorkerContext) -> Any:
        """Gets hold of what the worker pushes: its gradient, and the message that goes to the server."""
        link = getattr(context.deliver, "__self__", None)
        if isinstance(link, Link):
            link.intercept(lambda send: partial(self._repeat, context, send))
            context.deliver = partial(self._deliver, context, context.deliver)
        else:
            context.deliver = partial(self._deliver, context, partial(self._repeat, context, context.deliver))
        if self.plan.in_checkpoints:
            context.before_deposit = partial(self._deposit, context)
        return self.task.init(context)

    def step(self, context: WorkerContext, lease: Lease, state: Any) -> StepReport:
        """The task's, unless something happens."""
        self._happen(context, "step")
        return self.task.step(context, lease, state)

    def measure(self, module: Any, batch: Any, carry: Any) -> Any:
        """The task's."""
        return self.task.measure(module, batch, carry)

    def _happen(self, context: WorkerContext, during: str) -> None:
        for fault in self.plan.due(context.worker, context.sequence):
            if fault.changes_the_push or fault.during != during:
                continue
            if self.plan.claim(fault) or fault.lasts:
                happen(fault)

    def _deposit(self, context: WorkerContext) -> None:
        """The worker is about to hand over what it holds for itself."""
        for fault in self.plan.due_in_checkpoint(context.worker, context.sequence):
            if self.plan.claim(fault):
                happen(fault)

    def _deliver(
        self, context: WorkerContext, deliver: Callable[[Update], Receipt | None], update: Update
    ) -> Receipt | None:
        """Pushes a gradient, spoiled perhaps."""
        self._happen(context, "push")
        for fault in self._claimed(context, SPOILS):
            spoil(fault, update)
        receipt = deliver(update)
        self._happen(context, "acknowledge")
        return receipt

    def _repeat(
        self, context: WorkerContext, send: Callable[[Update], Receipt | None], update: Update
    ) -> Receipt | None:
        """Sends a message, or what was sent before, or it and the same again."""
        kinds = {fault.kind for fault in self._claimed(context, REPEATS)}
        copy = _copied(update) if kinds or self._keeps_first else None
        if "stale" in kinds and context.worker in self.first:
            send(_copied(self.first[context.worker]))
        if copy is not None and self._keeps_first:
            self.first.setdefault(context.worker, copy)
        receipt = send(update)
        if copy is not None and "duplicate" in kinds:
            send(_copied(copy))
        return receipt

    @property
    def _keeps_first(self) -> bool:
        plan = self.plan
        return any(fault.kind == "stale" for fault in plan.faults) or any(
            "stale" in one.kinds for one in plan.storms
        )

    def _claimed(self, context: WorkerContext, kinds: frozenset[str]) -> list[Fault]:
        due = self.plan.due(context.worker, context.sequence)
        return [fault for fault in due if fault.kind in kinds and self.plan.claim(fault)]


def _copied(update: Update) -> Update:
    return replace(update, gradients=[None if g is None else g.clone() for g in update.gradients])

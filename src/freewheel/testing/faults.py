"""Kinds of faults: what goes wrong, in which step of which worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from freewheel.errors import ConfigurationError
from freewheel.update import Update

During = Literal["step", "push", "acknowledge", "checkpoint"]
"""Before the step computes; when its gradient is about to be pushed; when it has been, and nobody knows; when
the worker hands over what it holds for itself, for a checkpoint."""
DURING: tuple[During, ...] = ("step", "push", "acknowledge", "checkpoint")

Send = Callable[[Update], object]
"""Delivers an update, as the worker's context would."""


class InjectedFaultError(RuntimeError):
    """The exception of :func:`fail`."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong once; make one with :func:`kill` and its like.

    Attributes:
        kind: its name.
        worker: whose step, from 0.
        step: which of the worker's steps in the whole run, from 0.
        during: the part of the step.
        seconds: how long it takes.
        code: of the exit.
        steps: how many of the worker's steps have it, the first included; 0: all that follow.
    """

    kind: str
    worker: int
    step: int
    during: During = "step"
    seconds: float = 0.0
    code: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        for name in ("worker", "step", "steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ConfigurationError(f"`{name}` must be a whole number >= 0, got {value!r}")
        if self.during not in DURING:
            raise ConfigurationError(f"`during` must be one of {', '.join(DURING)}, got {self.during!r}")
        if not self.seconds >= 0:
            raise ConfigurationError(f"`seconds` must be >= 0, got {self.seconds!r}")

    @property
    def ends_a_process(self) -> bool:
        """Only a worker in a process of its own can do that."""
        return self.kind in ENDINGS

    @property
    def changes_the_push(self) -> bool:
        """It is not done by the worker, but to what it sends."""
        return self.kind in PUSHES

    @property
    def lasts(self) -> bool:
        """It happens in several steps, and counts as one fault."""
        return self.steps != 1

    def hits(self, worker: int, step: int) -> bool:
        """Whether this step has it."""
        if worker != self.worker or step < self.step:
            return False
        return not self.steps or step < self.step + self.steps

    def at(self, worker: int, step: int) -> Fault:
        """The same elsewhere."""
        return replace(self, worker=worker, step=step)

    def __str__(self) -> str:
        """For messages: the call that makes it, more or less."""
        when = "" if self.during == "step" or self.changes_the_push else f", during={self.during!r}"
        return f"{self.kind}(worker={self.worker}, step={self.step}{when})"


def kill(worker: int, step: int, during: During = "step") -> Fault:
    """The worker's process is ended by SIGKILL, as by the system when memory runs out.

    Args:
        worker: whose, from 0.
        step: which of its steps, from 0.
        during: "step", before it computes; "push", when its gradient is about to be pushed; "acknowledge",
            when that has been applied, and the worker has told nobody yet; "checkpoint", when the worker
            hands over what it holds for itself, for the first checkpoint after so many of its steps (on
            processes only).

    Example:
        >>> str(kill(worker=1, step=5, during="push"))
        "kill(worker=1, step=5, during='push')"
    """
    return Fault("kill", worker, step, during)


def segfault(worker: int, step: int, during: During = "step") -> Fault:
    """The worker's process is ended by SIGSEGV, as by a bug in native code; arguments as :func:`kill`."""
    return Fault("segfault", worker, step, during)


def leave(worker: int, step: int, code: int = 1, during: During = "step") -> Fault:
    """The worker's process ends at once with this exit code; other arguments as :func:`kill`."""
    return Fault("leave", worker, step, during, code=code)


def fail(worker: int, step: int, during: During = "step") -> Fault:
    """The step raises an :class:`InjectedFaultError`; arguments as :func:`kill`."""
    return Fault("fail", worker, step, during)


def hang(worker: int, step: int, seconds: float = 3600.0, during: During = "step") -> Fault:
    """The step stands still for so long; other arguments as :func:`kill`."""
    return Fault("hang", worker, step, during, seconds)


def slow(worker: int, step: int, seconds: float = 0.1, steps: int = 0) -> Fault:
    """From this step on each step takes so much longer, as on a machine that others have come to use.

    Args:
        worker: whose, from 0.
        step: the first of its steps that is slow, from 0.
        seconds: that are added to each.
        steps: how many are slow; 0: all that follow.
    """
    return Fault("slow", worker, step, seconds=seconds, steps=steps)


def nan(worker: int, step: int) -> Fault:
    """The gradient that the step pushes is NaN."""
    return Fault("nan", worker, step)


def garbage(worker: int, step: int) -> Fault:
    """The gradient that the step pushes is finite and far too large: its elements are of the order of 1e6."""
    return Fault("garbage", worker, step)


def wrong_shape(worker: int, step: int) -> Fault:
    """The gradient that the step pushes has another shape than its weight."""
    return Fault("wrong_shape", worker, step)


def duplicate(worker: int, step: int) -> Fault:
    """What the step pushes is pushed once more."""
    return Fault("duplicate", worker, step)


def stale(worker: int, step: int) -> Fault:
    """Before its own, the step pushes once more what the worker pushed first of all."""
    return Fault("stale", worker, step)


# --- what they do ---


def happen(fault: Fault) -> None:
    """Does what a fault does to the worker that is here."""
    if fault.kind == "fail":
        raise InjectedFaultError(f"injected: {fault}")
    if fault.kind in ("hang", "slow"):
        time.sleep(fault.seconds)
    elif fault.kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault.kind])
        time.sleep(60)  # until it is delivered
    elif fault.kind == "leave":
        os._exit(fault.code)


def spoil(fault: Fault, update: Update) -> None:
    """Does what a fault does to the gradient of an update."""
    gradients = [None if gradient is None else gradient.clone() for gradient in update.gradients]
    for position, gradient in enumerate(gradients):
        if gradient is None:
            continue
        if fault.kind == "nan":
            gradient.fill_(float("nan"))
        elif fault.kind == "garbage":
            gradient.copy_(1e6 * torch.randn(gradient.shape, generator=torch.Generator().manual_seed(0)))
        elif fault.kind == "wrong_shape":
            gradients[position] = torch.zeros(*gradient.shape, 2)
    update.gradients = gradients


SIGNALS = {"kill": signal.SIGKILL, "segfault": signal.SIGSEGV}
ENDINGS = frozenset((*SIGNALS, "leave"))
SPOILS = frozenset(("nan", "garbage", "wrong_shape"))
REPEATS = frozenset(("duplicate", "stale"))
PUSHES = SPOILS | REPEATS
KINDS: Sequence[str] = ("kill", "segfault", "leave", "fail", "hang", *sorted(PUSHES))
"""What a storm may be of."""

"""When faults happen: decided by (seed, worker, step or message) alone, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.simulation.draws import Stream, Uniforms, checked_seed, generator
from freewheel.simulation.faults import (
    Corrupt,
    Die,
    Duplicate,
    Fault,
    Hang,
    Lose,
    PushFault,
    Reorder,
    StepFault,
)
from freewheel.simulation.noise import replace_by_noise


class Fate(NamedTuple):
    """What becomes of one push.

    Attributes:
        lost: it never arrives; the other fields then say nothing.
        copies: how often it arrives.
        delay_s: seconds it is late.
        noise: it is replaced by noise so many times as long as the gradient; 0.0: it is not.
    """

    lost: bool = False
    copies: int = 1
    delay_s: float = 0.0
    noise: float = 0.0


SAFE = Fate()


class FaultPlan:
    """The faults of one run.

    Whether something happens to a push is drawn by the number of the push, so that it does not depend on
    what happened to others, or on the order in which workers come.

    Args:
        faults: what can go wrong; none by default.
        seed: of the run, >= 0.

    Raises:
        ConfigurationError: something that is no fault, two faults of one worker in the same step, or a
            negative seed.

    Attributes:
        fired: how often each kind of fault happened, by the name of the function that makes it.

    Example:
        >>> from freewheel.simulation import die, lose
        >>> plan = FaultPlan([die(worker=1, step=2), lose(0.5)], seed=0)
        >>> [plan.step(1, step) for step in range(4)]
        [None, None, Die(worker=1, step=2, back_after_s=None), None]
        >>> lost = sum(plan.push(0, number).lost for number in range(1000))
        >>> plan.fired == {"die": 1, "lose": lost}, 450 < lost < 550
        (True, True)
    """

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self.faults = _checked(faults)
        self.fired: Counter[str] = Counter()
        self._seed = checked_seed(seed)
        self._steps: dict[tuple[int, int], StepFault] = {}
        for fault in self.faults:
            if isinstance(fault, StepFault):
                self._enter(fault)
        self._pushes = [
            (index, one) for index, one in enumerate(self.faults) if isinstance(one, PushFault) and one.share
        ]
        self._draws: dict[tuple[int, int], Uniforms] = {}

    def _enter(self, fault: StepFault) -> None:
        before = self._steps.setdefault((fault.worker, fault.step), fault)
        if before is not fault:
            raise ConfigurationError(
                f"`faults` has two for worker {fault.worker} in step {fault.step}: {before.describe} and"
                f" {fault.describe}; give them different steps"
            )

    def __bool__(self) -> bool:
        """Whether anything can happen at all."""
        return bool(self._steps or self._pushes)

    def step(self, worker: int, step: int) -> StepFault | None:
        """What happens to a worker in one of its steps; each fault happens once.

        A worker that comes back and begins the same step again lives through it.
        """
        if not self._steps:
            return None
        fault = self._steps.pop((worker, step), None)
        if fault is not None:
            self.fired[_kind(fault)] += 1
        return fault

    def push(self, worker: int, number: int) -> Fate:
        """What becomes of one push; ask once for each, as every answer is counted.

        Args:
            worker: who pushes.
            number: which of its pushes, from 0.
        """
        if not self._pushes:
            return SAFE
        fate = SAFE
        for index, fault in self._pushes:
            if isinstance(fault, Corrupt) and fault.workers is not None and worker not in fault.workers:
                continue
            if self._draw(index, worker, number) < fault.share:
                fate = _befalls(fault, fate)
        self._count(fate)
        return fate

    def corrupt(self, gradients: Sequence[Tensor | None], worker: int, number: int, noise: float) -> None:
        """Replaces the gradients of one push in place by noise, which depends on the push alone.

        Args:
            gradients: of the push.
            worker: who pushes.
            number: which of its pushes, from 0.
            noise: how many times as long as the gradient it is, from `Fate.noise`.
        """
        device = next((one.device for one in gradients if one is not None), torch.device("cpu"))
        seed = int(generator(self._seed, Stream.NOISE, worker, number).integers(2**63))
        replace_by_noise(gradients, noise, torch.Generator(device).manual_seed(seed))

    @property
    def named(self) -> frozenset[int]:
        """The workers that it names, which a run should have."""
        steps = {one.worker for one in self.faults if isinstance(one, StepFault)}
        corrupted = [one.workers or frozenset() for one in self.faults if isinstance(one, Corrupt)]
        return frozenset(steps).union(*corrupted)

    @property
    def describe(self) -> str:
        """The faults, for the report."""
        shown = [fault.describe for fault in self.faults[:4]]
        more = [f"{len(self.faults) - 4} more"] if len(self.faults) > 4 else []
        return ", ".join(shown + more) or "none"

    def _draw(self, index: int, worker: int, number: int) -> float:
        """A uniform number for this fault and push."""
        draws = self._draws.get((index, worker))
        if draws is None:
            draws = self._draws[index, worker] = Uniforms(self._seed, index, worker)
        return draws[number]

    def _count(self, fate: Fate) -> None:
        if fate is SAFE:
            return
        if fate.lost:
            self.fired["lose"] += 1
            return
        happened = {"duplicate": fate.copies > 1, "reorder": fate.delay_s > 0, "corrupt": fate.noise > 0}
        self.fired.update(name for name, did in happened.items() if did)


def _befalls(fault: PushFault, fate: Fate) -> Fate:
    """The fate with one more fault; of two of a kind the worse counts."""
    match fault:
        case Lose():
            return fate._replace(lost=True)
        case Duplicate():
            return fate._replace(copies=fate.copies + 1)
        case Reorder():
            return fate._replace(delay_s=max(fate.delay_s, fault.delay_s))
        case Corrupt():
            return fate._replace(noise=max(fate.noise, fault.scale))


def _kind(fault: Fault) -> str:
    return type(fault).__name__.lower()


def _checked(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    checked = tuple(faults)
    for fault in checked:
        if not isinstance(fault, Die | Hang | Corrupt | Duplicate | Reorder | Lose):
            raise ConfigurationError(
                "`faults` may hold die(), hang(), corrupt(), duplicate(), reorder() and lose(); got"
                f" {fault!r}"
            )
    return checked

"""What a rule is: a pair of pure-looking functions ``(init, apply)``, and how rules are chained.

The same idea as an optax gradient transformation, with two differences: state is tensors that are changed in
place (so that it can live in shared memory and racing workers allocate nothing), and the last rule of a
chain, a descent, writes the weights itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from freewheel.errors import CheckpointError, ConfigurationError
from freewheel.schedules import Schedule
from freewheel.update import Update

State = dict[str, Any]
"""A tree of names. Every leaf is a list aligned with the span's entries: tensors of the weight's shape (a
momentum) or of shape () (a step count), or None for an entry that the rule does not look after."""


@dataclass(frozen=True)
class Span:
    """The entries that a rule's state is made for.

    Attributes:
        names: the entries' names, such as ``"0.weight"``.
        weights: the live weights, one tensor per entry, in the same order.
    """

    names: tuple[str, ...]
    weights: list[Tensor]

    def like(self, fill: float = 0.0) -> list[Tensor]:
        """One tensor per entry with the weight's shape and strides, filled with a value."""
        return [torch.full_like(weight, fill, memory_format=torch.preserve_format) for weight in self.weights]

    def counts(self) -> list[Tensor]:
        """One float32 zero of shape () per entry, such as Adam's step count."""
        return [torch.zeros((), device=weight.device) for weight in self.weights]

    def once(self, tensor: Tensor) -> list[Tensor | None]:
        """One tensor for all entries together, kept at the first; for rules that see whole updates only."""
        return [tensor, *[None] * (len(self.weights) - 1)]


@dataclass(slots=True)
class RuleContext:
    """What a rule may know beside the update. One per worker, reused for every update.

    Attributes:
        names: names of the update's entries.
        weights: live weights of the update's entries, aligned with ``update.gradients``.
        samples: examples applied by all workers before this update; schedules are functions of it.
        planned: examples of the whole run, for schedules without a total of their own; None if unknown.
        staleness: updates that others had applied between this worker's pull and its push.
        worker: who pushed.
        workers: how many workers there are.
        verdict: "applied"; a rule that returns None sets it to "absorbed" or to the reason of the drop.
        released: how many updates that were absorbed before go into, or are given up with, this one.
        generator: for rules that draw; a worker's is seeded by (seed, worker), a server's by the seed.
        controls: ``(2,)`` float64: what learning rates are multiplied by, and the momentum in place of the
            rule's; NaN is the rule's. None is 1 and NaN.
    """

    names: tuple[str, ...] = ()
    weights: list[Tensor] | None = None
    samples: int = 0
    planned: int | None = None
    staleness: int = 0
    worker: int = 0
    workers: int = 1
    verdict: str = "applied"
    released: int = 0
    generator: torch.Generator | None = None
    controls: Tensor | None = None

    def rate(self, schedule: Schedule) -> float:
        """The learning rate of this update."""
        eta = schedule(self.samples, self.planned)
        return eta if self.controls is None else eta * self.controls[0].item()

    def momentum(self, own: float) -> float:
        """The momentum of this update; `own` is the rule's, and 0 stays 0: there is no buffer then."""
        chosen = math.nan if self.controls is None or not own else self.controls[1].item()
        return own if math.isnan(chosen) else chosen


class Rule(NamedTuple):
    """One step of what happens to an update.

    Attributes:
        scope: "piece" when the rule works on any part of an update, "update" when it needs the whole (a
            norm).
        init: makes the state for a span.
        apply: changes the update in place and returns it, or returns None after setting ``context.verdict``.
        describe: the settings, for the report: ``"sgd(lr=0.05, momentum=0.9)"``.
        descends: True for the rule that writes the weights; a chain ends with exactly one.
        exclusive: True for a rule that two threads must not run at once (a buffer of updates).
        needs_pulled: True for a rule that reads ``update.pulled``; refused where workers read live weights.
        parts: the rules of a chain, in order; empty for a single rule.
        rate: learning rate of a descent; None where there is no single one.
        momentum: of a descent that has any, as ``torch.optim`` names it: ``("momentum", 0.9)``, or
            ``("betas", (0.9, 0.999))``, of which the first is meant.
    """

    scope: Literal["piece", "update"]
    init: Callable[[Span], State]
    apply: Callable[[Update, State, RuleContext], Update | None]
    describe: str
    descends: bool = False
    exclusive: bool = False
    needs_pulled: bool = False
    parts: tuple[Rule, ...] = ()
    rate: Schedule | None = None
    momentum: tuple[str, Any] | None = None


def select(state: State, positions: Sequence[int]) -> State:
    """The same tree for some entries of the span only; the tensors are shared, not copied."""
    return {
        name: select(value, positions) if isinstance(value, dict) else [value[i] for i in positions]
        for name, value in state.items()
    }


def restore(state: State, saved: State, other: bool = False) -> None:
    """Gives a rule's state the values of another of the same rule, in place.

    Args:
        state: as ``init`` made it; whoever holds its tensors sees the change.
        saved: what it was; one whose length grew with use (a number a worker) may be longer.
        other: the rule may be another, as for another number of workers: what only one of them has (a
            momentum that is 0 for many workers) begins anew, or is left out.

    Raises:
        CheckpointError: it is of another rule.
    """
    if other:
        both = state.keys() & saved.keys()
        state, saved = {name: state[name] for name in both}, {name: saved[name] for name in both}
    if state.keys() != saved.keys():
        raise CheckpointError(
            f"the state of the rule has {', '.join(saved) or 'nothing'}, not {', '.join(state) or 'nothing'}"
        )
    for name, value in state.items():
        if isinstance(value, dict):
            restore(value, saved[name], other)
            continue
        if len(value) != len(saved[name]):
            raise CheckpointError(f"the rule's {name!r} is of {len(saved[name])} entries, not {len(value)}")
        for tensor, then in zip(value, saved[name], strict=True):
            _restore(name, tensor, then)


def _restore(name: str, tensor: Tensor | None, then: Tensor | None) -> None:
    if tensor is None or then is None:
        if tensor is not then:
            raise CheckpointError(f"the rule's {name!r} looks after other entries")
        return
    if tensor.shape != then.shape:
        if tensor.dim() != 1 or then.dim() != 1:
            raise CheckpointError(
                f"the rule's {name!r} has shape {tuple(then.shape)}, not {tuple(tensor.shape)}"
            )
        tensor.resize_(then.shape)
    tensor.copy_(then)


def stateless(_: Span) -> State:
    """The ``init`` of a rule without state."""
    return {}


def chain(*rules: Rule) -> Rule:
    """One rule that applies several in order; each gets what the one before returned.

    A rule that returns None (absorbed or dropped) ends the chain for that update.

    Raises:
        ConfigurationError: no rules, or a descent that is not the last.

    Example:
        >>> from freewheel.rules import chain, clip, finite, sgd
        >>> chain(finite(), clip(1.0), sgd(0.1)).describe
        'finite() > clip(max_norm=1.0) > sgd(lr=0.1)'
    """
    if not rules:
        raise ConfigurationError("chain() needs at least one rule; give it sgd(lr), say")
    if any(rule.descends for rule in rules[:-1]):
        raise ConfigurationError(
            "a rule that writes the weights (sgd, adam, ...) must be the last of a chain, got "
            + " > ".join(rule.describe for rule in rules)
        )

    def init(span: Span) -> State:
        return {str(position): rule.init(span) for position, rule in enumerate(rules)}

    steps = [(str(position), rule.apply) for position, rule in enumerate(rules)]

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        result: Update | None = update
        for key, step in steps:
            result = step(update, state[key], context)
            if result is None:
                return None
            update = result
        return result

    if len(rules) == 1:
        return rules[0]
    return Rule(
        scope="update" if any(rule.scope == "update" for rule in rules) else "piece",
        init=init,
        apply=apply,
        describe=" > ".join(rule.describe for rule in rules),
        descends=rules[-1].descends,
        exclusive=any(rule.exclusive for rule in rules),
        needs_pulled=any(rule.needs_pulled for rule in rules),
        parts=tuple(part for rule in rules for part in (rule.parts or (rule,))),
        rate=rules[-1].rate,
        momentum=rules[-1].momentum,
    )

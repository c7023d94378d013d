"""The server: the only one that changes shared parameters. No threads, no clock, no files.

Several threads may call :meth:`Server.push` at the same time without a lock when the method is lock-free:
every counter has one writer (a slot per worker), and totals are sums over the slots. Methods that gather
rounds need the caller to hold a lock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.rounds import Round
from freewheel.rules import Rule, RuleContext, Span, State, select
from freewheel.update import WHOLE, Update


class Receipt(NamedTuple):
    """What became of a push.

    Attributes:
        status: "applied", "pending" (its round is not complete), "absorbed", "duplicate", or why it was
            dropped.
        staleness: updates that others had applied between the worker's pull and this push.
    """

    status: str
    staleness: int


class Part(NamedTuple):
    """Some entries with everything that an update of them needs, prepared once."""

    names: tuple[str, ...]
    weights: list[Tensor]
    strides: list[tuple[int, ...]]
    state: State


@dataclass(slots=True)
class Slot:
    """What the server knows of one worker; only that worker's pushes write to it."""

    context: RuleContext
    versions: int = 0  # applied updates of this worker, as counted in the version
    samples: int = 0
    sequence: int = -1  # the last step that was closed
    incarnation: int = 0
    pieces: set[tuple[int, ...]] = field(default_factory=set)  # of the step under way
    verdict: str = "applied"  # of the pieces of the step under way: that of the last one that was not applied
    pushed: int = 0
    counts: Counter[str] = field(default_factory=Counter)  # finished pushes by verdict


class Server:
    """Parameters, the rule that updates them, and the book of what was applied.

    Args:
        parameters: the flat vector; changed in place.
        rule: what happens to an update; must end in a descent.
        workers: how many will push.
        rounds: gather one update of every active worker and apply their mean (synchronous training).
        planned_samples: of the whole run, for schedules given as fractions of it; None if unknown.

    Raises:
        ConfigurationError: the rule does not end in a descent.
    """

    def __init__(
        self,
        parameters: Parameters,
        rule: Rule,
        workers: int,
        rounds: bool = False,
        planned_samples: int | None = None,
    ) -> None:
        if not rule.descends:
            raise ConfigurationError(
                f"`rule` {rule.describe} never writes the weights; end it with a descent: chain(..., sgd(lr))"
            )
        self.parameters = parameters
        self.workers = workers
        self._apply_rule = rule.apply
        self._round = Round(set(range(workers))) if rounds else None
        self._round_verdict = "applied"
        self._whole = self._prepare(rule)
        self._parts: dict[tuple[int, ...], Part] = {WHOLE: self._whole}
        self._slots = [
            Slot(RuleContext(worker=worker, workers=workers, planned=planned_samples))
            for worker in range(workers)
        ]

    def _prepare(self, rule: Rule) -> Part:
        names = tuple(entry.name for entry in self.parameters.layout.trainable)
        weights = self.parameters.trainable_views()
        state = rule.init(Span(names, weights))
        return Part(names, weights, [weight.stride() for weight in weights], state)

    @property
    def version(self) -> int:
        """Number of updates that were applied: the age of the weights."""
        return sum([slot.versions for slot in self._slots])

    @property
    def samples(self) -> int:
        """Examples behind all applied updates."""
        return sum([slot.samples for slot in self._slots])

    def push(self, update: Update) -> Receipt:
        """Takes an update, or one piece of it; each (worker, incarnation, sequence, piece) counts once.

        Args:
            update: gradients of the weights' shapes; owned by the server from here on.
        """
        slot = self._slots[update.worker]
        if self._is_duplicate(update, slot):
            return Receipt("duplicate", 0)
        staleness = self.version - update.version
        if update.last:
            slot.sequence = update.sequence
            slot.pushed += 1
        if update.gradients:
            part = self._parts.get(update.entries) or self._part(update.entries)
            _conform(update.gradients, part)
        if self._round is not None:
            return self._gather(update, self._round)
        status = update.rejected or self._apply(update, slot, staleness)
        if not update.last:
            if status != "applied":
                slot.verdict = status
            return Receipt(status, staleness)
        if slot.verdict != "applied":
            status, slot.verdict = update.rejected or slot.verdict, "applied"
        self._finish(update, status)
        if status == "applied":
            slot.versions += 1
            if update.buffers is not None:
                self._blend(update.buffers)
        return Receipt(status, staleness)

    def retire(self, worker: int) -> None:
        """The worker has no further step for now: rounds go on without it."""
        if self._round is not None:
            self._advance(self._round.retire(worker), self._round)

    def admit(self) -> None:
        """Everybody takes part again."""
        if self._round is not None:
            self._round.active = set(range(self.workers))

    def ledger(self) -> dict[str, Any]:
        """The book: pushed = applied + absorbed + pending + all dropped; duplicates were not pushed."""
        counts: Counter[str] = sum((slot.counts for slot in self._slots), Counter())
        pushed = sum(slot.pushed for slot in self._slots)
        duplicates = counts.pop("duplicate", 0)
        applied, absorbed = counts.pop("applied", 0), counts.pop("absorbed", 0)
        dropped = {reason: count for reason, count in sorted(counts.items()) if count}
        pending = pushed - applied - absorbed - sum(dropped.values())
        return {
            "pushed": pushed,
            "applied": applied,
            "absorbed": absorbed,
            "pending": pending,
            "dropped": dropped,
            "duplicates": duplicates,
        }

    def dropped(self) -> list[Counter[str]]:
        """Dropped steps by reason, for every worker."""
        passed = ("applied", "absorbed", "duplicate")
        return [
            Counter({k: n for k, n in dict(slot.counts).items() if k not in passed}) for slot in self._slots
        ]

    def _is_duplicate(self, update: Update, slot: Slot) -> bool:
        if update.incarnation > slot.incarnation:  # a new life counts its steps from 0 again
            slot.incarnation, slot.sequence, slot.verdict = update.incarnation, -1, "applied"
            slot.pieces.clear()
        stale_life = update.incarnation < slot.incarnation
        if stale_life or update.sequence <= slot.sequence or update.entries in slot.pieces:
            slot.counts["duplicate"] += 1
            return True
        if update.last:
            slot.pieces.clear()
        else:
            slot.pieces.add(update.entries)
        return False

    def _part(self, entries: tuple[int, ...]) -> Part:
        whole = self._whole
        if min(entries) < 0 or max(entries) >= len(whole.names):
            raise ConfigurationError(
                f"`entries` {entries} are not among the {len(whole.names)} trainable entries"
            )
        part = Part(
            tuple(whole.names[i] for i in entries),
            [whole.weights[i] for i in entries],
            [whole.strides[i] for i in entries],
            select(whole.state, entries),
        )
        self._parts[entries] = part
        return part

    def _apply(self, update: Update, slot: Slot, staleness: int) -> str:
        if not update.gradients:
            return "applied"
        part = self._parts[update.entries]
        context = slot.context
        context.names, context.weights = part.names, part.weights
        context.samples, context.staleness = self.samples, staleness
        context.verdict = "applied"
        self._apply_rule(update, part.state, context)
        return context.verdict

    def _finish(self, update: Update, status: str) -> None:
        slot = self._slots[update.worker]
        slot.counts[status] += 1
        if status == "applied":
            slot.samples += update.samples

    def _gather(self, update: Update, gathering: Round) -> Receipt:
        self._advance(gathering.add(update), gathering)
        return Receipt(update.rejected or "pending", 0)

    def _advance(self, means: list[Update], gathering: Round) -> None:
        """Applies what a round has completed, and books the round when it is over."""
        for mean in means:
            verdict = self._apply(mean, self._slots[mean.worker], 0)
            if verdict != "applied":
                self._round_verdict = verdict
        if not gathering.is_over():
            return
        status, self._round_verdict = self._round_verdict, "applied"
        closed = gathering.close()
        for update in closed:
            self._finish(update, update.rejected or status)
        if status == "applied" and not all(update.rejected for update in closed):
            self._slots[closed[0].worker].versions += 1
        buffers = [update.buffers for update in closed if update.buffers is not None and not update.rejected]
        if buffers and status == "applied":
            self.parameters.statistics.copy_(torch.stack(buffers).mean(0) if len(buffers) > 1 else buffers[0])

    def _blend(self, buffers: Tensor) -> None:
        """Running statistics: assigned when there is one worker, else mixed in with weight 1/workers."""
        if self.workers == 1:
            self.parameters.statistics.copy_(buffers)
        else:
            self.parameters.statistics.lerp_(buffers, 1 / self.workers)


def _conform(gradients: list[Tensor | None], part: Part) -> None:
    """Gives every gradient memory of its own with the strides of its weight.

    Fused kernels go over raw memory. Autograd may hand over the same tensor for two weights (their sum, the
    two biases of an LSTM), which a rule that works in place would change twice.
    """
    strides = part.strides
    if len(gradients) != len(strides):
        raise ConfigurationError(f"`gradients` must be {len(strides)}, one an entry, got {len(gradients)}")
    if _fits(gradients, strides):
        return
    seen: set[int] = set()
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        address = gradient.data_ptr()
        if gradient.stride() != strides[i] or address in seen:
            gradients[i] = _copied(gradient, part.weights[i], part.names[i])
        seen.add(address)


def _fits(gradients: list[Any], strides: list[tuple[int, ...]]) -> bool:
    """Whether nothing need be copied, as nearly always; maps take half the time of a loop."""
    try:
        distinct = len(set(map(Tensor.data_ptr, gradients))) == len(gradients)
        return distinct and list(map(Tensor.stride, gradients)) == strides
    except TypeError:  # a weight without a gradient
        return False


def _copied(gradient: Tensor, weight: Tensor, name: str) -> Tensor:
    if gradient.shape != weight.shape:
        raise ConfigurationError(
            f"the gradient of {name!r} must have its shape {tuple(weight.shape)}, got {tuple(gradient.shape)}"
        )
    return torch.empty_like(weight).copy_(gradient)

"""The server: the only one that changes shared parameters. No threads, no clock, no files.

Several threads may call :meth:`Server.push` at the same time without a lock when the method is lock-free:
every counter has one writer (a slot per worker), and totals are sums over the slots. Methods that gather
rounds, and rules that keep a buffer of updates, need the caller to hold a lock.

A push has three parts, which an engine may also call one by one when they happen at different times:
:meth:`Server.admit` (seen before? rules of the whole update), :meth:`Server.apply` on every shard, and
:meth:`Server.finish`, which books it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freewheel.book import ERROR, Book, Slot
from freewheel.conform import conform
from freewheel.errors import ConfigurationError
from freewheel.gathering import Gathering
from freewheel.params import Parameters
from freewheel.rules import Rule, RuleContext, Span, State, select
from freewheel.rules.base import restore as restore_rule
from freewheel.shards import Shard, cut, split
from freewheel.update import WHOLE, Update

LOST = "lost"
"""The reason of a drop that the network is to blame for."""


class Receipt(NamedTuple):
    """What became of a push.

    Attributes:
        status: "applied", "pending" (its round is not complete), "absorbed", "duplicate", or why it was
            dropped.
        staleness: updates that had been applied between the worker's pull and this push; of the shard with
            most, where there are several.
    """

    status: str
    staleness: int


class Part(NamedTuple):
    """Some entries with everything that an update of them needs, prepared once."""

    names: tuple[str, ...]
    weights: list[Tensor]
    strides: list[tuple[int, ...]]
    state: State


class Server:
    """Parameters, the rule that updates them, and the book of what was applied.

    Args:
        parameters: the flat vector; changed in place.
        rule: what happens to an update; must end in a descent.
        workers: how many will push.
        rounds: gather one update of every active worker and apply their mean (synchronous training).
        planned_samples: of the whole run, for schedules given as fractions of it; None if unknown.
        backup: workers that a round does not wait for.
        shards: spans of the flat vector with versions and rule states of their own.
        seed: of the generator that rules may draw from.
        places: in the book, for workers that have left or are to come; as many as workers if left out.

    Attributes:
        book: what was pushed, applied and dropped, by worker.

    Raises:
        ConfigurationError: the rule does not end in a descent, or a number of shards that cannot be.
    """

    def __init__(
        self,
        parameters: Parameters,
        rule: Rule,
        workers: int,
        rounds: bool = False,
        planned_samples: int | None = None,
        *,
        backup: int = 0,
        shards: int = 1,
        seed: int = 0,
        places: int | None = None,
    ) -> None:
        if not rule.descends:
            raise ConfigurationError(
                f"`rule` {rule.describe} never writes the weights; end it with a descent: chain(..., sgd(lr))"
            )
        self.parameters = parameters
        self.workers = workers
        places = workers if places is None else places
        self.shards = cut(parameters, shards, places)
        self._head, tail = split(rule) if shards > 1 else (None, rule)
        self._apply_rule = tail.apply
        self._backup = backup
        self._whole = self._prepare(self._head if self._head is not None else tail)
        self._parts: dict[tuple[int, ...], Part] = {WHOLE: self._whole}
        self._prepare_shards(tail)
        self._generator = generator = torch.Generator().manual_seed(seed)
        self._slots = [
            Slot(RuleContext(worker=worker, workers=workers, planned=planned_samples, generator=generator))
            for worker in range(places)
        ]
        self.book = Book(self._slots)
        self._rounds = (
            Gathering(workers, backup, self.book, self._apply_mean, parameters.statistics) if rounds else None
        )

    def _prepare(self, rule: Rule) -> Part:
        names = tuple(entry.name for entry in self.parameters.layout.trainable)
        weights = self.parameters.trainable_views()
        state = rule.init(Span(names, weights))
        return Part(names, weights, [weight.stride() for weight in weights], state)

    def _prepare_shards(self, rule: Rule) -> None:
        if len(self.shards) == 1:
            shard = self.shards[0]
            shard.names, shard.weights, shard.state = (
                self._whole.names,
                self._whole.weights,
                self._whole.state,
            )
            return
        for shard in self.shards:
            shard.names = tuple(piece.entry.name for piece in shard.pieces)
            shard.weights = [piece.weight(self.parameters.flat) for piece in shard.pieces]
            shard.state = rule.init(Span(shard.names, shard.weights))

    def states(self) -> list[State]:
        """Every state that rules have made: of the rules of whole updates, and of every shard.

        An engine may put other tensors of the same values into their leaves before the first push.
        """
        return [self._whole.state, *[shard.state for shard in self.shards if len(self.shards) > 1]]

    @property
    def version(self) -> int:
        """Number of updates that were applied: the age of the weights."""
        return self.book.version

    @property
    def samples(self) -> int:
        """Examples behind all applied updates."""
        return self.book.samples

    def versions(self) -> tuple[int, ...]:
        """The version of every shard; empty where there is only one."""
        return tuple([shard.version for shard in self.shards]) if len(self.shards) > 1 else ()

    # --- pulling ---

    def pull(self, target: Tensor) -> tuple[int, ...]:
        """Copies the trainable weights, shard by shard.

        Args:
            target: ``(layout.size,)``, overwritten where weights are trainable.

        Returns:
            The version of every shard that was copied.
        """
        return tuple([self.pull_shard(shard, target) for shard in self.shards])

    def pull_shard(self, shard: Shard, target: Tensor) -> int:
        """Copies one shard's span to the same place of ``target``; returns its version."""
        with shard.lock:
            version = self.version if len(self.shards) == 1 else shard.version
            target[shard.span].copy_(self.parameters.flat[shard.span])
        return version

    # --- pushing ---

    def push(self, update: Update) -> Receipt:
        """Takes an update, or one piece of it; each (worker, incarnation, sequence, piece) counts once.

        Args:
            update: gradients of the weights' shapes; owned by the server from here on.
        """
        if len(self.shards) > 1:
            return self._push_sharded(update)
        slot = self._slots[update.worker]
        if slot.is_duplicate(update):
            return Receipt("duplicate", 0)
        staleness = self.version - update.version
        self._open(update, slot)
        if self._rounds is not None:
            return self._gather(update, self._rounds)
        try:
            status = update.rejected or self._apply(update, slot, staleness)
        except Exception:
            self._give_up(update)
            raise
        if not update.last:
            if status != "applied":
                slot.verdict = status
            return Receipt(status, staleness)
        if slot.verdict != "applied":
            status, slot.verdict = update.rejected or slot.verdict, "applied"
        self.finish(update, status)
        return Receipt(status, staleness)

    def _push_sharded(self, update: Update) -> Receipt:
        receipt = self.admit(update)
        if receipt is not None:
            return receipt
        try:
            staleness = max([self.apply(shard, update) for shard in self.shards])
        except Exception:
            self._give_up(update)
            raise
        status = self.settled(update)
        self.finish(update, status)
        return Receipt(status, staleness)

    def admit(self, update: Update) -> Receipt | None:
        """The first part of a push: what comes of the update before any shard sees it.

        Returns:
            The receipt if that is all: a duplicate, dropped, absorbed, or gathered for a round. None if the
            shards are to apply the update; its gradients are then as the rules of the whole left them.
        """
        slot = self._slots[update.worker]
        if slot.is_duplicate(update):
            return Receipt("duplicate", 0)
        self._open(update, slot)
        if self._rounds is not None:
            return self._gather(update, self._rounds)
        staleness = self._staleness(update)
        try:
            status = update.rejected or self._apply_head(update, slot, staleness)
        except Exception:
            self._give_up(update)
            raise
        if status != "applied":
            self.finish(update, status)
            return Receipt(status, staleness)
        self._release(slot)  # another update of this worker may come before the last shard has this one
        return None

    def apply(self, shard: Shard, update: Update) -> int:
        """The second part of a push: applies an admitted update to one shard; returns the staleness there."""
        context = self._slots[update.worker].context
        whole, pulled = update.gradients, update.pulled
        with shard.lock:
            staleness = self._staleness_at(shard, update)
            if len(self.shards) > 1:
                update.gradients = shard.cut(whole)
                update.pulled = (
                    None if pulled is None else [g for g in shard.cut(list(pulled)) if g is not None]
                )
            context.names, context.weights = shard.names, shard.weights
            context.samples, context.staleness = self.samples, staleness
            context.verdict = "applied"
            self._apply_rule(update, shard.state, context)
            if context.verdict == "applied":
                shard.applied[update.worker] += 1
            else:
                update.rejected = context.verdict
        update.gradients, update.pulled = whole, pulled
        return staleness

    def settled(self, update: Update) -> str:
        """The verdict over all shards, once each has applied an admitted update."""
        return update.rejected or "applied"

    def finish(self, update: Update, status: str) -> None:
        """The last part of a push: books it."""
        slot = self._slots[update.worker]
        slot.counts[status] += 1
        self._release(slot)
        if status != "applied":
            return
        self.book.add(slot, update.samples)
        if update.buffers is not None:
            self._blend(update.buffers)

    def lose(self, update: Update) -> None:
        """Books a push that was sent and never arrived."""
        slot = self._slots[update.worker]
        slot.pushed += 1
        slot.counts[LOST] += 1

    def begin_life(self, worker: int) -> int:
        """The worker has been replaced: what its earlier life still pushes is a duplicate.

        Returns:
            The incarnation that its next updates must have; they are numbered from 0.
        """
        slot = self._slots[worker]
        slot.begin_life(slot.incarnation + 1)
        return slot.incarnation

    # --- rounds ---

    @property
    def gathers(self) -> bool:
        """Whether updates are gathered into rounds."""
        return self._rounds is not None

    def awaits_round(self, worker: int) -> bool:
        """The worker has pushed into a round that is not over: it must not start another step."""
        return self._rounds is not None and worker in self._rounds

    def retire(self, worker: int) -> None:
        """The worker has no further step for now: rounds go on without it."""
        if self._rounds is not None:
            self._rounds.retire(worker)

    def readmit(self, worker: int | None = None) -> None:
        """Everybody takes part in rounds again, or one worker."""
        if self._rounds is not None:
            self._rounds.readmit(range(self.workers) if worker is None else (worker,))

    def dissolve(self) -> None:
        """Lets go of the rounds: they refer to this object, and cycles are freed late, shared memory too."""
        self._rounds = None

    # --- the book ---

    def ledger(self) -> dict[str, Any]:
        """The book: pushed = applied + absorbed + pending + all dropped; duplicates were not pushed.

        Absorbed updates have gone into an aggregate; those that wait in a buffer or a round are pending.
        """
        return self.book.ledger()

    def dropped(self) -> dict[int, Counter[str]]:
        """Dropped steps by reason, for every worker that had any."""
        return self.book.dropped()

    # --- checkpoints ---

    def state(self) -> dict[str, Any]:
        """Everything that it holds, for a checkpoint; tensors are not copied. Nobody may be pushing."""
        rules = [self._whole.state] + ([shard.state for shard in self.shards] if len(self.shards) > 1 else [])
        return {
            "weights": self.parameters.flat,
            "statistics": self.parameters.statistics,
            "rules": rules,
            "applied": [list(shard.applied) for shard in self.shards],
            "book": self.book.state(),
            "round": self._rounds.state() if self._rounds is not None else None,
            "generator": self._generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from the state that another server of the same kind had.

        Raises:
            CheckpointError: the state of the rule is of another rule.
        """
        self.parameters.flat.copy_(state["weights"])
        self.parameters.statistics.copy_(state["statistics"])
        other = bool(state.get("resized"))
        restore_rule(self._whole.state, state["rules"][0], other)
        for shard, then in zip(self.shards, state["rules"][1:], strict=False):
            restore_rule(shard.state, then, other)
        for shard, applied in zip(self.shards, state["applied"], strict=True):
            for worker, count in enumerate(applied):
                shard.applied[worker] = count
        self.book.restore(state["book"])
        if self._rounds is not None:
            self._rounds.restore(state["round"])
        self._generator.set_state(state["generator"])

    # --- inside ---

    def _open(self, update: Update, slot: Slot) -> None:
        """Counts a push that was not seen before, and gives its gradients memory of their own."""
        if update.last:
            slot.close(update.sequence)
            slot.pushed += 1
        if update.gradients:
            part = self._part(update.entries)
            try:
                conform(update.gradients, part.weights, part.strides, part.names)
            except Exception:
                self._give_up(update)
                raise

    def _give_up(self, update: Update) -> None:
        """Books an update that raised an error: nobody will finish it. Of a step, the last piece counts."""
        if update.last:
            self.finish(update, ERROR)

    def _release(self, slot: Slot) -> None:
        slot.released += slot.context.released
        slot.context.released = 0

    def _staleness(self, update: Update) -> int:
        return max([self._staleness_at(shard, update) for shard in self.shards])

    def _staleness_at(self, shard: Shard, update: Update) -> int:
        if len(self.shards) == 1:
            return self.version - update.version
        return shard.version - update.versions[shard.index] if update.versions else 0

    def _part(self, entries: tuple[int, ...]) -> Part:
        return self._parts.get(entries) or self._new_part(entries)

    def _new_part(self, entries: tuple[int, ...]) -> Part:
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
        part = self._part(update.entries)  # of a round that was restored, nobody has pushed any here
        context = self._at(slot, part, staleness)
        with self.shards[0].lock:
            self._apply_rule(update, part.state, context)
        return context.verdict

    def _apply_head(self, update: Update, slot: Slot, staleness: int) -> str:
        if self._head is None or not update.gradients:
            return "applied"
        context = self._at(slot, self._whole, staleness)
        self._head.apply(update, self._whole.state, context)
        return context.verdict

    def _at(self, slot: Slot, part: Part, staleness: int) -> RuleContext:
        context = slot.context
        context.names, context.weights = part.names, part.weights
        context.samples, context.staleness = self.samples, staleness
        context.verdict = "applied"
        return context

    def _gather(self, update: Update, rounds: Gathering) -> Receipt:
        late = self._staleness(update) if self._backup else 0
        if late:
            self.finish(update, update.rejected or "late")
            return Receipt(update.rejected or "late", late)
        rounds.take(update)
        return Receipt(update.rejected or "pending", 0)

    def _apply_mean(self, mean: Update) -> str:
        slot = self._slots[mean.worker]
        if len(self.shards) == 1:
            return self._apply(mean, slot, 0)
        if not mean.gradients:
            return "applied"
        mean.versions = ()
        verdict = self._apply_head(mean, slot, 0)
        if verdict == "applied":
            for shard in self.shards:
                self.apply(shard, mean)
            verdict = self.settled(mean)
        return verdict

    def _blend(self, buffers: Tensor) -> None:
        """Running statistics: assigned when there is one worker, else mixed in with weight 1/workers."""
        if self.workers == 1:
            self.parameters.statistics.copy_(buffers)
        else:
            self.parameters.statistics.lerp_(buffers, 1 / self.workers)

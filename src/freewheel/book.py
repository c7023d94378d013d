"""The book of a server: what it knows of each worker, and how the counts add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from freewheel.rules import RuleContext
from freewheel.update import Update

PASSED = frozenset(("applied", "absorbed", "duplicate"))
"""Verdicts that are no drops."""

PLAIN = ("sequence", "incarnation", "verdict", "pushed", "released")
"""What a checkpoint holds of a slot as it is."""

ERROR = "error"
"""The reason of a drop in the middle of which a rule has raised an error."""

REMEMBERED = 4096  # pushes of one worker that have not come though later ones have: late, or lost


class Counts(Protocol):
    """One count a worker, each with one writer: a list, or what lies in memory that processes share."""

    def __getitem__(self, worker: int, /) -> int: ...

    def __setitem__(self, worker: int, count: int, /) -> None: ...

    def __iter__(self) -> Iterator[int]: ...


@dataclass(slots=True)
class Slot:
    """What the server knows of one worker; only that worker's pushes write to it."""

    context: RuleContext
    sequence: int = -1  # the last step that was closed
    missing: dict[int, None] = field(default_factory=dict)  # earlier ones that were not; oldest first
    incarnation: int = 0
    pieces: set[tuple[int, ...]] = field(default_factory=set)  # of the step under way
    verdict: str = "applied"  # of the pieces of the step under way: that of the last one that was not applied
    pushed: int = 0
    released: int = 0  # absorbed updates that have gone into an aggregate since
    counts: Counter[str] = field(default_factory=Counter)  # finished pushes by verdict

    def state(self) -> dict[str, Any]:
        """What is known, for a checkpoint."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "missing": list(self.missing),
            "pieces": sorted(self.pieces),
            "counts": dict(self.counts),
            "absorbed": self.context.released,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Knows what was known then."""
        for name in PLAIN:
            setattr(self, name, state[name])
        self.missing = dict.fromkeys(state["missing"])
        self.pieces = set(state["pieces"])
        self.counts = Counter(state["counts"])
        self.context.released = state["absorbed"]

    def begin_life(self, incarnation: int) -> None:
        """The worker has been replaced: a new life counts its steps from 0 again."""
        self.incarnation, self.sequence, self.verdict = incarnation, -1, "applied"
        self.pieces.clear()
        self.missing.clear()

    def has_seen(self, sequence: int) -> bool:
        """Whether this step was closed before; steps may arrive in another order than they were taken."""
        return sequence <= self.sequence and sequence not in self.missing

    def close(self, sequence: int) -> None:
        """This step is closed."""
        if sequence == self.sequence + 1:
            self.sequence = sequence
        elif sequence > self.sequence:
            self._skip(sequence)
        else:
            self.missing.pop(sequence, None)

    def _skip(self, sequence: int) -> None:
        """This step is closed before others; what is missing for too long counts as closed."""
        self.missing.update(dict.fromkeys(range(max(self.sequence + 1, sequence - REMEMBERED), sequence)))
        while len(self.missing) > REMEMBERED:
            del self.missing[next(iter(self.missing))]
        self.sequence = sequence

    def is_duplicate(self, update: Update) -> bool:
        """Whether this piece has come before, which is counted; else it counts as having come."""
        if update.incarnation > self.incarnation:
            self.begin_life(update.incarnation)
        stale_life = update.incarnation < self.incarnation
        if stale_life or self.has_seen(update.sequence) or update.entries in self.pieces:
            self.counts["duplicate"] += 1
            return True
        if update.last:
            self.pieces.clear()
        else:
            self.pieces.add(update.entries)
        return False


@final
class Book:
    """All slots, and the totals over them.

    Attributes:
        slots: one a worker.
        versions: applied updates of every worker, as counted in the version.
        samples_of: examples behind them.
        racing: several workers write at once, without a lock; totals are then summed over them.
    """

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.versions: Counts = [0] * len(slots)
        self.samples_of: Counts = [0] * len(slots)
        self.racing = False
        self._version = self._samples = 0

    @property
    def version(self) -> int:
        """Number of updates that were applied."""
        return sum(self.versions) if self.racing else self._version

    @property
    def samples(self) -> int:
        """Examples behind all applied updates."""
        return sum(self.samples_of) if self.racing else self._samples

    def state(self) -> dict[str, Any]:
        """What is known of every worker, for a checkpoint."""
        return {
            "slots": [slot.state() for slot in self.slots],
            "versions": list(self.versions),
            "samples": list(self.samples_of),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Knows what was known then."""
        for slot, then in zip(self.slots, state["slots"], strict=True):
            slot.restore(then)
        for worker, (versions, samples) in enumerate(zip(state["versions"], state["samples"], strict=True)):
            self.versions[worker], self.samples_of[worker] = versions, samples
        self._version, self._samples = sum(self.versions), sum(self.samples_of)

    def add(self, slot: Slot, samples: int, versions: int = 1) -> None:
        """Counts what was applied."""
        worker = slot.context.worker
        self.samples_of[worker] += samples
        self.versions[worker] += versions
        if not self.racing:
            self._samples += samples
            self._version += versions

    def ledger(self) -> dict[str, Any]:
        """The totals over all workers; see :meth:`freewheel.server.Server.ledger`."""
        counts: Counter[str] = sum((slot.counts for slot in self.slots), Counter())
        pushed = sum(slot.pushed for slot in self.slots)
        duplicates = counts.pop("duplicate", 0)
        applied = counts.pop("applied", 0)
        counts.pop("absorbed", 0)
        absorbed = sum(slot.released for slot in self.slots)
        reasons = {reason: count for reason, count in sorted(counts.items()) if count}
        return {
            "pushed": pushed,
            "applied": applied,
            "absorbed": absorbed,
            "pending": pushed - applied - absorbed - sum(reasons.values()),
            "dropped": reasons,
            "duplicates": duplicates,
        }

    def dropped(self) -> dict[int, Counter[str]]:
        """Dropped steps by reason, for every worker that had any."""
        return {
            worker: Counter({reason: n for reason, n in dict(slot.counts).items() if reason not in PASSED})
            for worker, slot in enumerate(self.slots)
            if not slot.counts.keys() <= PASSED
        }

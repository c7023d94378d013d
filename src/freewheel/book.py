"""The book of a server: what it knows of each worker, and how the counts add up."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from freewheel.rules import RuleContext
from freewheel.update import Update

PASSED = frozenset(("applied", "absorbed", "duplicate"))
"""Verdicts that are no drops."""

REMEMBERED = 64  # pushes of one worker that may arrive out of order


@dataclass(slots=True)
class Slot:
    """What the server knows of one worker; only that worker's pushes write to it."""

    context: RuleContext
    versions: int = 0  # applied updates of this worker, as counted in the version
    samples: int = 0
    sequence: int = -1  # the last step that was closed
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    incarnation: int = 0
    pieces: set[tuple[int, ...]] = field(default_factory=set)  # of the step under way
    verdict: str = "applied"  # of the pieces of the step under way: that of the last one that was not applied
    pushed: int = 0
    released: int = 0  # absorbed updates that have gone into an aggregate since
    counts: Counter[str] = field(default_factory=Counter)  # finished pushes by verdict

    def has_seen(self, sequence: int) -> bool:
        """Whether this step was closed before; steps may arrive in another order than they were taken."""
        if sequence > self.sequence:
            return False
        full = len(self.recent) == REMEMBERED
        return sequence in self.recent or (full and sequence < min(self.recent))

    def close(self, sequence: int) -> None:
        """This step is closed."""
        self.sequence = max(self.sequence, sequence)
        self.recent.append(sequence)

    def is_duplicate(self, update: Update) -> bool:
        """Whether this piece has come before, which is counted; else it counts as having come."""
        if update.incarnation > self.incarnation:  # a new life counts its steps from 0 again
            self.incarnation, self.sequence, self.verdict = update.incarnation, -1, "applied"
            self.pieces.clear()
            self.recent.clear()
        stale_life = update.incarnation < self.incarnation
        if stale_life or self.has_seen(update.sequence) or update.entries in self.pieces:
            self.counts["duplicate"] += 1
            return True
        if update.last:
            self.pieces.clear()
        else:
            self.pieces.add(update.entries)
        return False


def ledger(slots: Sequence[Slot]) -> dict[str, Any]:
    """The totals over all workers; see :meth:`freewheel.server.Server.ledger`."""
    counts: Counter[str] = sum((slot.counts for slot in slots), Counter())
    pushed = sum(slot.pushed for slot in slots)
    duplicates = counts.pop("duplicate", 0)
    applied = counts.pop("applied", 0)
    counts.pop("absorbed", 0)
    absorbed = sum(slot.released for slot in slots)
    reasons = {reason: count for reason, count in sorted(counts.items()) if count}
    return {
        "pushed": pushed,
        "applied": applied,
        "absorbed": absorbed,
        "pending": pushed - applied - absorbed - sum(reasons.values()),
        "dropped": reasons,
        "duplicates": duplicates,
    }


def dropped(slots: Sequence[Slot]) -> dict[int, Counter[str]]:
    """Dropped steps by reason, for every worker that had any."""
    return {
        worker: Counter({reason: n for reason, n in dict(slot.counts).items() if reason not in PASSED})
        for worker, slot in enumerate(slots)
        if not slot.counts.keys() <= PASSED
    }

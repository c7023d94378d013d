"""Takes down a run while it goes on.

One lock is held around every whole pull and every whole push, and the place in the order is noted while it is
held: the list of operations is therefore a linearisation of the run. A lock for each shard would let two
pushes pass each other on different shards; the order would then have to be noted by shard, and the rules of
the whole update by another lock. Recording is not meant to be fast.
"""

from __future__ import annotations

import threading
from array import array
from typing import final

import numpy as np

from freewheel.events import RunFinished
from freewheel.recording.log import TYPES, Columns, Kind, Operation
from freewheel.server import Receipt, Server
from freewheel.update import Update


@final
class Trace:
    """The operations of a run under way.

    Attributes:
        lock: held while an operation takes place.
        settling: the workers stand still and push what they hold back; that all are in the round then is
            understood, and not noted.
        finished: the totals, once the run is over.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.settling = False
        self.finished: RunFinished | None = None
        self._rows = array("q")  # one after the other
        self._paces: list[tuple[int, float]] = []
        self._statuses: dict[str, int] = {"": 0}

    def note(
        self,
        kind: Kind,
        worker: int = -1,
        number: int = 0,
        samples: int = 0,
        receipt: Receipt | None = None,
        version: int = 0,
    ) -> None:
        """Adds an operation."""
        status, staleness = (receipt.status, receipt.staleness) if receipt is not None else ("", 0)
        with self.lock:
            word = self._statuses.setdefault(status, len(self._statuses))
            # one call, which Ctrl-C cannot interrupt half-way; the order is that of Operation
            self._rows.extend((kind, worker, number, samples, staleness, word, version))

    def note_pace(self, worker: int, pace: float) -> None:
        """Adds a pace that a worker has read: it depends on how far the others are."""
        with self.lock:
            self._paces.append((worker, pace))

    @property
    def statuses(self) -> list[str]:
        """The words that the status column counts."""
        return list(self._statuses)

    def columns(self) -> Columns:
        """What was noted so far, as arrays."""
        with self.lock:
            names = Operation._fields
            rows = np.array(self._rows, dtype=np.int64).reshape(-1, len(names))
            workers, paces = [worker for worker, _ in self._paces], [pace for _, pace in self._paces]
        found = {name: rows[:, position] for position, name in enumerate(names)}
        found |= {"pace_worker": np.array(workers), "pace": np.array(paces)}
        return {name: column.astype(TYPES[name]) for name, column in found.items()}


class TracedServer(Server):
    """A server whose operations exclude each other, and are noted in the order in which they take place."""

    trace: Trace

    def push(self, update: Update) -> Receipt:
        """Takes an update."""
        with self.trace.lock:
            worker, number, samples = update.worker, update.sequence, update.samples
            receipt = super().push(update)
            self.trace.note(Kind.PUSH, worker, number, samples, receipt, self.version)
        return receipt

    def retire(self, worker: int) -> None:
        """Rounds go on without the worker."""
        with self.trace.lock:
            super().retire(worker)
            if self.gathers:
                self.trace.note(Kind.RETIRE, worker, version=self.version)

    def readmit(self, worker: int | None = None) -> None:
        """Everybody takes part in rounds again, or one worker."""
        with self.trace.lock:
            super().readmit(worker)
            if self.gathers and not self.trace.settling:
                self.trace.note(Kind.READMIT, -1 if worker is None else worker, version=self.version)

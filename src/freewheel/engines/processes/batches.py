"""Where a worker process has its batches from: it fetches them itself, or the main process sends them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from freewheel.engines.plan import Segment
from freewheel.engines.processes.lease_queue import END, next_number
from freewheel.engines.processes.messages import Ask, BatchSent, Done, Line, Work
from freewheel.engines.worker import Equipment
from freewheel.sources import Carry, Indexed, Lease, Source


class Batches(ABC):
    """One worker's batches."""

    @abstractmethod
    def open(self, work: Work) -> None:
        """A segment begins."""

    @abstractmethod
    def take(self, step: int) -> Lease | None:
        """The batch of this step of the segment; None: there is none left."""

    def done(self, lease: Lease) -> None:  # noqa: B027  (only what is sent needs it)
        """The step that used it is computed."""


@final
class Queued(Batches):
    """Whoever is ready takes the next number, and fetches its batch.

    Args:
        source: fetches.
        reader: descriptor of the queue.
    """

    def __init__(self, source: Source, reader: int) -> None:
        self._source, self._reader = source, reader

    def open(self, work: Work) -> None:
        """Nothing: the numbers come through the queue."""

    def take(self, step: int) -> Lease | None:
        """The next number's batch."""
        number = next_number(self._reader)
        return None if number == END else self._source.fetch(number)


@final
class Fixed(Batches):
    """Step r of a segment takes what lies in position ``r W + worker``, whoever is quicker."""

    def __init__(self, source: Source, worker: int, workers: int) -> None:
        self._source, self._worker, self._workers = source, worker, workers
        self._segment = Segment(0, 0)

    def open(self, work: Work) -> None:
        """Knows its numbers from here on."""
        self._segment = work.segment
        self._source.open(work.segment.first, work.segment.limit)

    def take(self, step: int) -> Lease | None:
        """The batch of that number."""
        return self._source.take_number(self._segment.number(step * self._workers + self._worker))


@final
class Sent(Batches):
    """The main process reads the batches and sends them: streams, and sequences with their hidden state."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def open(self, work: Work) -> None:
        """Nothing: the main process knows."""

    def take(self, step: int) -> Lease | None:
        """Asks for a batch and waits for it."""
        self._line.send(Ask(step))
        answer = self._line.receive()
        if not isinstance(answer, BatchSent):
            return None
        carry = Carry(answer.carried) if answer.carries else None
        return Lease(answer.number, answer.batch, answer.samples, answer.stream, carry)

    def done(self, lease: Lease) -> None:
        """Sends back what the stream carries on."""
        self._line.send(Done(None if lease.carry is None else lease.carry.value))


def fetched_by_workers(source: Source) -> bool:
    """Whether a batch follows from its number alone, so that every worker can fetch it."""
    return isinstance(source, Indexed)


def batches_for(source: Source | None, equipment: Equipment, worker: int, reader: int, line: Line) -> Batches:
    """A worker's batches; no source where the main process sends them."""
    if source is None:
        return Sent(line)
    if equipment.method.leases == "fixed":
        return Fixed(source, worker, equipment.setup.workers)
    return Queued(source, reader)

"""What workers in processes have done, whatever became of them: steps, batches, pages of the book."""

from __future__ import annotations

import math
from collections import Counter
from typing import final

from freewheel.engines.processes.desk import Desk
from freewheel.engines.processes.messages import Entry
from freewheel.engines.processes.session import Left, ProcessSession

NO_BATCH = -1


@final
class Accounts:
    """Collects the finished steps, and settles those of workers that have died.

    Args:
        session: of the run, with its workers' steps put back if it goes on.
        desk: where updates are applied that workers do not apply themselves.
    """

    def __init__(self, session: ProcessSession, desk: Desk) -> None:
        self._session = session
        self._desk = desk
        self._booked = list(session.board.steps)  # steps of each worker that were taken up from the journal
        self._lives = list(session.board.steps)  # steps that each had finished when its process was started
        slots = () if desk.serves else session.server.book.slots
        self._books = {w: Entry(s.pushed, s.released, Counter(s.counts)) for w, s in enumerate(slots)}
        self._handed = Left([], 0)  # batches that were handed out in this segment: these, and all that follow
        self._done: list[int] = []  # numbers of the batches that were used since
        for worker in range(len(self._lives)):
            session.board.batch[worker] = NO_BATCH

    # --- batches ---

    def hand_out(self, left: Left) -> None:
        """These batches may be taken from now on."""
        self._handed, self._done = left, []

    def left(self) -> Left:
        """The batches of the segment that nobody has finished yet."""
        done = set(self._done)
        following = max(self._handed.following, max(done, default=-1) + 1)
        numbers = [*self._handed.numbers, *range(self._handed.following, following)]
        return Left([number for number in numbers if number not in done], following)

    # --- steps ---

    def collect(self) -> None:
        """Takes up what the workers have finished."""
        for worker in range(len(self._booked)):
            self._take_up(worker)

    def _take_up(self, worker: int) -> None:
        rows = list(self._session.journal.collect(worker))
        self._session.record.queue.extend(rows)
        if rows:
            self._booked[worker] = rows[-1][1] + 1
        if self._desk.queued:
            self._done += [row[2] for row in rows]

    def has_finished_any(self, worker: int) -> bool:
        """The present life of the worker has finished a step."""
        return self._session.board.steps[worker] > self._lives[worker]

    def begin_life(self, worker: int) -> None:
        """Another process takes the worker's place."""
        self._lives[worker] = self._session.board.steps[worker]
        self._session.board.batch[worker] = NO_BATCH

    def in_hand(self, worker: int) -> int | None:
        """The batch that the worker has taken and not finished, as far as that is known."""
        number = self._session.board.batch[worker]
        return None if number == NO_BATCH or number in self._done else number

    def settle(self, worker: int) -> None:
        """Books what a dead worker has done, and takes back what it had in hand."""
        session, board = self._session, self._session.board
        self._take_up(worker)
        board.steps[worker] = max(board.steps[worker], self._booked[worker])  # it may have died in between
        receipt = self._desk.forget(worker)
        if receipt is not None:
            number = board.batch[worker]
            row = (worker, board.steps[worker], number, self._samples(number), math.nan, receipt.staleness)
            session.record.queue.append((*row, session.clock.seconds()))
            board.steps[worker] += 1
            if self._desk.queued:
                self._done.append(number)
        slot = session.server.book.slots[worker]
        if not self._desk.serves:  # its page of the book ends where it last told of it
            unknown = board.versions[worker] - slot.counts["applied"]
            slot.counts["applied"] += unknown
            slot.pushed += unknown
            self._books[worker] = Entry(slot.pushed, slot.released, Counter(slot.counts))

    def _samples(self, number: int) -> int:
        """Examples of the batch with this number, as far as the source knows."""
        source = self._session.job.source
        before, upto = source.samples_before(number), source.samples_before(number + 1)
        return source.batch_size if before is None or upto is None else upto - before

    # --- the book ---

    def enter(self, worker: int, entry: Entry) -> None:
        """What a worker's page of the book says, with those of its earlier lives."""
        before = self._books.get(worker, Entry(0, 0, Counter()))
        slot = self._session.server.book.slots[worker]
        slot.pushed, slot.released = before.pushed + entry.pushed, before.released + entry.released
        slot.counts = before.counts + entry.counts

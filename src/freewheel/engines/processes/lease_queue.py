"""The queue of batch numbers that worker processes take from: a pipe.

Whoever is ready reads the next eight bytes. The system hands them out one reader at a time, so no lock exists
that a worker could die with, and nobody has more than one batch at a time: workers of any speed finish
together. The alternative, a message to the main process for every batch or for chunks of them, costs either a
hundred times as much a step, or leaves slow workers with their chunk at the end.
"""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Sequence
from typing import final

END = -1  # nothing follows in this segment; one for every worker
NUMBER = struct.Struct("=q")
BLOCK = 512  # numbers written at once: 4096 bytes, which pipes take whole or not at all


@final
class LeaseQueue:
    """The main process's end.

    Args:
        workers: how many read.

    Attributes:
        reader: the descriptor that workers read from.
    """

    def __init__(self, workers: int) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._workers = workers
        self._numbers: Sequence[int] = ()
        self._next = 0  # position of the next number to be written
        self._ends = 0  # marks still to be written

    def open(self, numbers: Sequence[int]) -> None:
        """Hands out these numbers, as far as there is room; see :meth:`feed`."""
        self._numbers, self._next, self._ends = numbers, 0, self._workers
        self.feed()

    def replaced(self) -> None:
        """A worker has died, perhaps with its mark, and another reads in its place."""
        self._ends += 1
        self.feed()

    def feed(self) -> None:
        """Fills the pipe up; call it a few times a second."""
        while self._next < len(self._numbers):
            block = self._numbers[self._next : self._next + BLOCK]
            if not self._write(block):
                return
            self._next += len(block)
        while self._ends:
            count = min(self._ends, BLOCK)
            if not self._write([END] * count):
                return
            self._ends -= count

    def stop(self) -> None:
        """Wakes whoever waits for a number. Nobody does where the pipe is full."""
        self._numbers, self._next, self._ends = (), 0, 0
        self._write([END] * min(self._workers, BLOCK))

    def clear(self) -> None:
        """Empties the pipe; every worker stands still."""
        self._numbers, self._next, self._ends = (), 0, 0
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        while poll.poll(0):
            os.read(self.reader, 65536)

    def close(self) -> None:
        """Closes both ends here."""
        os.close(self.reader)
        os.close(self._writer)

    def _write(self, numbers: Sequence[int]) -> bool:
        try:
            os.write(self._writer, b"".join(map(NUMBER.pack, numbers)))
        except BlockingIOError:
            return False
        return True


def next_number(reader: int) -> int:
    """The next number, or :data:`END`, in a worker; waits until there is one."""
    data = os.read(reader, NUMBER.size)
    return int(NUMBER.unpack(data)[0]) if data else END

"""Which batch comes next: a seeded, leased work queue.

A source numbers its batches 0, 1, 2, ... over all epochs. A worker *takes* the next number whenever it is
ready, so nobody waits at the end of an epoch because its own share is done; synchronous rounds take fixed
numbers instead. What a dead worker had taken is given back and is taken again.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from freewheel.errors import ConfigurationError

Batch = Any
"""What the task gets: usually ``(inputs, targets)``, but anything that a collate function makes."""


@dataclass(slots=True)
class Carry:
    """State that one stream hands from a segment to the next (a recurrent hidden state)."""

    value: Any = None


@dataclass(frozen=True, slots=True)
class Lease:
    """One batch, taken by one worker.

    Attributes:
        number: position in the whole run, from 0.
        batch: the data.
        samples: number of examples in it.
        stream: which stream a recurrent segment belongs to.
        carry: that stream's state; None for independent batches.
    """

    number: int
    batch: Batch
    samples: int
    stream: int = 0
    carry: Carry | None = None


class Source(ABC):
    """A queue of batches. Subclasses say what batch a number stands for.

    Attributes:
        batches: number of batches in an epoch; None when it is only known at its end.
        samples: number of examples in an epoch; None when unknown.
        batch_size: examples in a full batch.
        ended: an epoch of unknown length is over; opening begins the next.
        broken: reading has raised an error, and cannot go on behind it.
        lock: held while the next number, or the next batch of a source that cannot be indexed, is handed
            out; an engine with threads sets a real one.
    """

    batches: int | None
    samples: int | None
    batch_size: int
    ended: bool = False
    broken: bool = False

    def __init__(self) -> None:
        self.lock: AbstractContextManager[Any] = contextlib.nullcontext()
        self._limit: int | None = 0
        self._next: Iterator[int] = itertools.count()
        self._returned: deque[int] = deque()

    def open(self, first: int, limit: int | None) -> None:
        """Lets the numbers ``first <= n < limit`` be taken; call it while every worker stands still."""
        self._next = itertools.count(first)
        self._limit = limit

    def take(self) -> Lease | None:
        """The next batch, or None when the opened ones are used up. May be called by several threads."""
        number = self._take_next()
        try:
            return self.take_number(number)
        except BaseException:
            self._returned.appendleft(number)
            raise

    def _take_next(self) -> int:
        """A number that was given back, or the next; counting is atomic under the interpreter lock only."""
        with self.lock:
            return self._returned.popleft() if self._returned else next(self._next)

    def take_number(self, number: int) -> Lease | None:
        """The batch with this number, or None when it is not open."""
        if self._limit is not None and number >= self._limit:
            return None
        return self.fetch(number)

    def give_back(self, lease: Lease) -> None:
        """The lease was not used: somebody else will take its number."""
        self.put_back(lease)
        self._returned.append(lease.number)

    def put_back(self, lease: Lease) -> None:  # noqa: B027  (only what is read in order needs it)
        """The lease was not used, and its very number will be asked for again: a round's are fixed."""

    def acknowledge(self, lease: Lease) -> None:  # noqa: B027  (only streams need it)
        """The update that came of this lease has been pushed."""

    def reopen(self, limit: int | None) -> None:
        """Goes on after :meth:`restore` with what was open then, up to another limit perhaps."""
        self._limit = limit

    def state(self) -> dict[str, Any]:
        """Where it stands, for a checkpoint; call it while nobody takes.

        Whoever found nothing left has counted on all the same; what was not open was not taken.
        """
        number = next(self._next)
        if self._limit is not None:
            number = min(number, self._limit)
        self._next = itertools.count(number)
        return {"next": number, "returned": list(self._returned)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stands where it stood then; :meth:`reopen` comes next.

        Raises:
            CheckpointError: the data do not reach as far.
        """
        self._next = itertools.count(state["next"])
        self._returned = deque(state["returned"])

    @abstractmethod
    def fetch(self, number: int) -> Lease | None:
        """The batch with this number; None at the end of an epoch of unknown length."""

    @abstractmethod
    def first(self) -> Batch:
        """The first batch, without taking it: for checks before the run."""

    def short(self) -> Batch | None:
        """The short batch at the end of an epoch, for checks before the run; None if there is none."""
        return None

    def samples_before(self, number: int) -> int | None:
        """Examples in the batches before ``number``; None when the length of an epoch is unknown."""
        if self.batches is None or self.samples is None:
            return None
        epochs, rest = divmod(number, self.batches)
        return epochs * self.samples + min(rest * self.batch_size, self.samples)


def check_batch_size(batch_size: Any) -> None:
    """Refuses a minibatch of no examples.

    Raises:
        ConfigurationError: no whole number, or below 1.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigurationError(f"`batch_size` must be a whole number >= 1, got {batch_size!r}")


def count_samples(batch: Batch) -> int:
    """Number of examples in a batch: the length of its first tensor, or of its first plain list."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    items = batch if isinstance(batch, list | tuple) else []
    nested = [item for item in items if isinstance(item, Tensor | list | tuple | Mapping)]
    if not nested:
        return max(1, len(items))
    tensors = [item for item in nested if isinstance(item, Tensor) and item.dim()]
    return count_samples((tensors or nested)[0])

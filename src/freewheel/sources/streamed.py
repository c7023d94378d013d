"""Batches that come one after the other, and the sources of loaders."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from freewheel.errors import CheckpointError, DataError
from freewheel.sources.base import Batch, Lease, Source, count_samples
from freewheel.sources.indexed import Indexed, dataset_fetch

_NOTHING = object()


@final
class Streamed(Source):
    """Batches that come one after the other: iterable data sets, and loaders with processes of their own.

    A batch that is asked for out of turn makes the ones before it wait in memory.

    Args:
        batches: makes an iterator over one epoch's batches.
        samples_in: number of examples in a batch.
        length: number of batches in an epoch, if known.
        batch_size: examples in a full batch; None looks at the first batch.
        samples: number of examples in an epoch, if known.
        generators: that the order of the batches is drawn from, beside PyTorch's own.

    Raises:
        DataError: no batch to look at.
    """

    def __init__(
        self,
        batches: Callable[[], Iterator[Batch]],
        samples_in: Callable[[Batch], int],
        length: int | None = None,
        batch_size: int | None = None,
        samples: int | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        super().__init__()
        self._make = batches
        self._samples_in = samples_in
        self._iterator: Iterator[Batch] | None = None
        self._given = 0  # batches that this iterator has given
        self._read = 0  # number of the next batch that the iterator will give
        self._waiting: dict[int, Batch] = {}
        self._generators = generators
        self._began_with: deque[list[Tensor]] = deque(maxlen=2)  # the generators when the last epochs began
        self.batches = length
        self.batch_size = samples_in(self.first()) if batch_size is None else batch_size
        self.samples = length * self.batch_size if samples is None and length is not None else samples

    def open(self, first: int, limit: int | None) -> None:
        """As :meth:`Source.open`; the batches that wait, and then the iterator's next, get the numbers."""
        self.ended = False
        self._returned.clear()
        self._waiting = {first + i: self._waiting[n] for i, n in enumerate(sorted(self._waiting))}
        self._read = first + len(self._waiting)
        super().open(first, limit)

    def put_back(self, lease: Lease) -> None:
        """The batch waits for somebody else."""
        with self.lock:
            self._waiting[lease.number] = lease.batch

    def fetch(self, number: int) -> Lease | None:
        """The batch with this number, read ahead to if needed; None at the end of an epoch."""
        with self.lock:
            while number >= self._read and number not in self._waiting:
                if not self._read_next():
                    return None
            batch = self._waiting.pop(number)
        return Lease(number, batch, self._samples_in(batch))

    def state(self) -> dict[str, Any]:
        """As :meth:`Source.state`: how much was read. Batches that wait are read again, not kept."""
        begun = self._read - self._given  # the number of the first batch of the epoch that was read last
        return {
            **super().state(),
            "read": self._read,
            "given": self._given,
            "reading": self._iterator is not None,
            "waiting": [(number, number - begun) for number in sorted(self._waiting)],
            "ended": self.ended,
            "began_with": list(self._began_with),
            "generators": [generator.get_state() for generator in self._generators],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As :meth:`Source.restore`: begins the epoch again and passes over what was read.

        The order of the data must be the same as then: fixed, or drawn from PyTorch's generator and those
        that the source was given.
        """
        super().restore(state)
        self.ended, self._read, self._given = state["ended"], state["read"], state["given"]
        self._waiting, self._iterator = {}, None
        wanted = {place: number for number, place in state["waiting"]}
        *before, last = state["began_with"] or [None]
        if before and any(place < 0 for place in wanted):  # of the epoch before: its last ones
            length = self.batches or 0
            self._pass_over(self._epoch_of(before[-1]), length, wanted, -length)
        if state["reading"] or any(place >= 0 for place in wanted):
            iterator = self._epoch_of(last)
            self._pass_over(iterator, self._given, wanted, 0)
            self._iterator = iterator if state["reading"] else None
        for generator, then in zip(self._generators, state["generators"], strict=True):
            generator.set_state(then)

    def _pass_over(self, batches: Iterator[Batch], count: int, wanted: dict[int, int], place: int) -> None:
        """Reads so many batches, the first of which has this place; keeps those that waited."""
        for read in range(count):
            batch = next(batches, _NOTHING)
            if batch is _NOTHING:
                raise CheckpointError(
                    f"`data` gave {read} batches, and {count} had been read of it; resume with the data of"
                    " the run"
                )
            if place + read in wanted:
                self._waiting[wanted[place + read]] = batch

    def _epoch_of(self, began_with: list[Tensor] | None) -> Iterator[Batch]:
        """An iterator that draws from the generators as they were when the epoch began."""
        generators = (torch.default_generator, *self._generators)
        if began_with is not None:
            for generator, then in zip(generators, began_with, strict=True):
                generator.set_state(then)
        self._began_with.append([generator.get_state() for generator in generators])
        return iter(self._make())

    def first(self) -> Batch:
        """The next batch; it stays in the queue."""
        while not self._waiting:
            self.ended = False
            self._read_one()
        return self._waiting[min(self._waiting)]

    def _read_next(self) -> bool:
        """Reads a batch for a worker; False at the end of an epoch, and behind an error."""
        try:
            return not self.broken and self._read_one()
        except BaseException:
            self.broken = True  # an iterator that has raised an error is at its end
            raise

    def _read_one(self) -> bool:
        """Reads a batch; False at the end of an epoch."""
        if self.ended:
            return False
        if self._iterator is None:
            self._iterator, self._given = self._epoch_of(None), 0
        try:
            batch = next(self._iterator)
        except StopIteration:
            return self._begin_again()
        self._waiting[self._read] = batch
        self._read += 1
        self._given += 1
        return True

    def _begin_again(self) -> bool:
        self._iterator = None
        if not self._given:
            raise DataError(
                "`data` gave no batch; an iterable must give at least one in every epoch (a generator can"
                " be read only once: give a Dataset or a DataLoader)"
            )
        if self.batches is not None and self._given >= self.batches:
            return self._read_one()
        self.ended = True
        return False


def loader_source(loader: DataLoader[Any], seed: int) -> Source:
    """The source of a ``DataLoader``: its index lists are leased, and its batches collated on the workers.

    A loader that shuffles is shuffled by ``seed`` instead. One with an iterable data set, with processes of
    its own or with a custom sampler is read in its own order.
    """
    if loader.batch_size is None or loader.num_workers > 0 or not _is_plain(loader):
        return Streamed(
            lambda: iter(loader),
            count_samples,
            _length(loader),
            loader.batch_size,
            _size(loader),
            _generators(loader),
        )
    return Indexed(
        dataset_fetch(loader.dataset, loader.collate_fn),
        len(loader.sampler),  # type: ignore[arg-type]  # a plain sampler has a length
        loader.batch_size,
        seed,
        shuffle=isinstance(loader.sampler, RandomSampler),
        drop_last=loader.drop_last,
    )


def _generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Those that a loader, or its sampler, was given by the user; each once."""
    owners = (loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(item): item for item in found if isinstance(item, torch.Generator)}.values())


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Whether an epoch is every example once, in order or in a random one."""
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset):
        return False
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == _length(loader.dataset)
    return type(sampler) is SequentialSampler


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None


def _size(loader: DataLoader[Any]) -> int | None:
    """Examples in an epoch of a loader; None when it makes the batches in a way of its own."""
    if loader.batch_size is None or isinstance(loader.dataset, IterableDataset):
        return None
    size = _length(loader.sampler)
    return size - size % loader.batch_size if size is not None and loader.drop_last else size

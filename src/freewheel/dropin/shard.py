"""A worker's part of a DataLoader."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple, final

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from freewheel.dropin.messages import Dealt, Exhausted, Order, Retire, Returned, Take, Unordered
from freewheel.dropin.station import asked
from freewheel.engines.processes.messages import Line


class Loop(NamedTuple):
    """What is told of a script's loop over a shard.

    Attributes:
        enter: it begins.
        given: the worker is given a batch of so many examples.
        leave: it is left; whether its epoch has ended.
    """

    enter: Callable[[], None]
    given: Callable[[int], None]
    leave: Callable[[bool], None]


@final
class Shard:
    """A loader that gives a worker its part of every epoch.

    Every iteration is an epoch. Its batches, as the loader's own sampler makes them, go to whoever asks
    next, so a slow worker computes fewer; each to one worker, unless that dies with it in hand: then
    another gets it. Of an iterable data set or a sampler without a length, which nobody can number, each of W
    workers takes every W-th batch.

    ``len()`` is this worker's share if all are equally fast, rounded up. Everything else is the loader's:
    ``shard.dataset``, ``shard.batch_size``.

    Args:
        loader: the script's.
        number: of the loader, the same in every worker.
        rank: which worker.
        workers: how many there are.
        line: to the launcher; None where this worker is alone.
        loop: told of every epoch.
        again: the worker has been started again; it tells of epochs that pass without a batch.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        number: int,
        rank: int,
        workers: int,
        line: Line | None,
        loop: Loop,
        again: bool = False,
    ) -> None:
        self.loader = loader
        self._again = again
        self._rank, self._workers = rank, workers
        self._line, self._loop = line, loop
        self._epoch = 0
        self._leases = self._dealt = None
        if line is not None and _is_numbered(loader):
            self._leases = _Leases(line, number, loader, len(self))
            self._dealt = _over(loader, self._leases)

    def __len__(self) -> int:
        return math.ceil(len(self.loader) / self._workers)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        """This worker's batches of the next epoch."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        if self._leases is not None and self._dealt is not None:
            return self._numbered(epoch, self._leases, self._dealt)
        return self._every_nth()

    def _numbered(self, epoch: int, leases: _Leases, dealt: DataLoader[Any]) -> Iterator[Any]:
        leases.epoch = epoch
        ended = False
        self._loop.enter()
        try:
            given = False
            for batch in dealt:
                given = True
                self._loop.given(leases.samples())
                yield batch
                leases.finish()
            ended = True
            if self._again and not given:
                told = f"freewheel: epoch {epoch} is done already: it passes without a batch"
                print(told, file=sys.stderr, flush=True)
        finally:
            leases.give_back()
            self._retire(ended)

    def _every_nth(self) -> Iterator[Any]:
        ended = False
        self._loop.enter()
        try:
            for batch in islice(self.loader, self._rank, None, self._workers):
                self._loop.given(examples(batch))
                yield batch
            ended = True
        finally:
            self._retire(ended)

    def _retire(self, ended: bool) -> None:
        self._loop.leave(ended)
        if self._line is not None:
            with suppress(OSError):  # the launcher is gone: the next step will say so
                self._line.send(Retire())


@final
class _Leases:
    """Batches of one epoch as the launcher deals them, in the place of a sampler."""

    def __init__(self, line: Line, shard: int, loader: DataLoader[Any], expected: int) -> None:
        self._line = line
        self._shard = shard
        self._loader = loader
        self._expected = expected
        self._held: deque[tuple[int, int]] = (
            deque()
        )  # (number, examples); the oldest is in the script's hands
        self.epoch = 0

    def __len__(self) -> int:
        return self._expected

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        while not isinstance(answer := asked(self._line, Take(self._shard, epoch)), Exhausted):
            if isinstance(answer, Unordered):
                # Only one worker's order counts, so that samplers need not agree on how they shuffle.
                self._line.send(Order(self._shard, epoch, list(_sampler(self._loader))))
                continue
            assert isinstance(answer, Dealt)
            size = len(answer.batch) if isinstance(answer.batch, Sequence) else 1
            self._held.append((answer.number, size))
            yield answer.batch

    def samples(self) -> int:
        """Examples of the batch in the script's hands."""
        return self._held[0][1]

    def finish(self) -> None:
        """The script has come for its next batch."""
        number, _ = self._held.popleft()
        self._line.send(Returned(self._shard, self.epoch, finished=(number,)))

    def give_back(self) -> None:
        """The script has left its loop: what it holds is dealt again."""
        if self._held:
            left = tuple([number for number, _ in self._held])
            self._held.clear()
            with suppress(OSError):
                self._line.send(Returned(self._shard, self.epoch, unfinished=left))


def _is_numbered(loader: DataLoader[Any]) -> bool:
    """Whether it has a last batch; a sampler without a length may go on for ever."""
    if isinstance(loader.dataset, IterableDataset):
        return False
    try:
        return len(loader) >= 0
    except TypeError:
        return False


def _sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def _over(loader: DataLoader[Any], leases: _Leases) -> DataLoader[Any]:
    """The same loader with another sampler."""
    batched = loader.batch_sampler is not None
    chosen: Mapping[str, Any] = (
        {"batch_sampler": leases} if batched else {"batch_size": None, "sampler": leases}
    )
    return DataLoader(
        loader.dataset,
        **chosen,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def examples(batch: Any) -> int:
    """How many examples a batch has: the length of its first tensor.

    Example:
        >>> import torch
        >>> examples({"x": [torch.zeros(3, 2)]}), examples("what?")
        (3, 1)
    """
    while isinstance(batch, Mapping | tuple | list) and batch:
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return batch.shape[0] if isinstance(batch, Tensor) and batch.dim() else 1

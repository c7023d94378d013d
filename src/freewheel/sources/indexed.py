"""Batches of examples that can be had by their index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from freewheel.errors import DataError
from freewheel.sources.base import Batch, Lease, Source, check_batch_size


@final
class Indexed(Source):
    """Batches of examples that can be had by their index: tensors, map-style data sets.

    Every epoch is a new permutation drawn from ``(seed, epoch)``; its last batch may be short.

    Args:
        fetch: ``(indices) -> batch``; indices is an int64 tensor.
        size: number of examples.
        batch_size: examples a batch.
        seed: of the permutations.
        shuffle: False keeps the order of the data.
        drop_last: leave out an epoch's short last batch.

    Raises:
        DataError: no examples.
        ConfigurationError: ``batch_size`` below 1.

    Example:
        >>> source = Indexed(lambda indices: indices.tolist(), size=5, batch_size=2, seed=0, shuffle=False)
        >>> source.open(0, limit=3)
        >>> [source.take().batch for _ in range(3)], source.take()
        ([[0, 1], [2, 3], [4]], None)
    """

    def __init__(
        self,
        fetch: Callable[[Tensor], Batch],
        size: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        super().__init__()
        if size < 1:
            raise DataError("`data` has no examples; give at least one")
        check_batch_size(batch_size)
        if drop_last and size < batch_size:
            raise DataError(
                f"`data` has {size} examples, fewer than one batch of {batch_size}, and drop_last is on"
            )
        self._fetch = fetch
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._orders: dict[int, Tensor] = {}
        self.batch_size = batch_size
        self.batches = size // batch_size if drop_last else -(-size // batch_size)
        self._count = self.batches
        self.samples = min(size, self.batches * batch_size)

    @property
    def order(self) -> str:
        """What the order of the examples follows from."""
        return f"shuffled by seed {self._seed}" if self._shuffle else "as it is"

    def fetch(self, number: int) -> Lease:
        """The batch with this number."""
        epoch, position = divmod(number, self._count)
        order = self._orders.get(epoch)
        if order is None:
            order = self._order(epoch)
        start = position * self.batch_size
        indices = order[start : start + self.batch_size]
        # Asking a tensor for its length takes as long as all the rest of this.
        return Lease(number, self._fetch(indices), min(self.batch_size, self._size - start))

    def first(self) -> Batch:
        """The first batch of the run."""
        return self.fetch(0).batch

    def short(self) -> Batch | None:
        """The last batch of the first epoch, if it has fewer examples."""
        if self._count == 1 or self._size % self.batch_size == 0 or self.samples != self._size:
            return None
        return self.fetch(self._count - 1).batch

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            order = torch.arange(self._size)
        else:
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            order = torch.randperm(self._size, generator=generator)
        # Two workers may both make an epoch's order: they make the same one. Old ones may still be given
        # back to.
        self._orders[epoch] = order
        self._orders.pop(epoch - 2, None)
        return order


def tensors(*columns: Tensor) -> Callable[[Tensor], Batch]:
    """The ``fetch`` of tensors in memory; ``index_select`` is several times faster than fancy indexing."""

    def fetch(indices: Tensor) -> Batch:
        return tuple([torch.index_select(column, 0, indices) for column in columns])

    def fetch_on_device(indices: Tensor) -> Batch:
        return tuple([torch.index_select(column, 0, indices.to(column.device)) for column in columns])

    return fetch if all(column.is_cpu for column in columns) else fetch_on_device


def dataset_fetch(dataset: Any, collate: Callable[[list[Any]], Batch]) -> Callable[[Tensor], Batch]:
    """The ``fetch`` of a map-style data set."""
    many = getattr(dataset, "__getitems__", None)

    def fetch(indices: Tensor) -> Batch:
        chosen = indices.tolist()
        return collate(many(chosen) if many is not None else [dataset[i] for i in chosen])

    return fetch

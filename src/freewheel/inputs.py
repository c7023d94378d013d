"""From what users have (tensors, data sets, loaders) to sources, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from freewheel.errors import ConfigurationError, DataError
from freewheel.sources import (
    Indexed,
    Sequences,
    Source,
    Streamed,
    check_batch_size,
    count_samples,
    dataset_fetch,
    loader_source,
    tensors,
)

KINDS = (
    "a pair of tensors (inputs, targets), a Dataset, a DataLoader, an iterable of batches, or, with bptt=, a"
    " 1-D tensor of tokens"
)


def source_of(
    data: Any, batch_size: int, seed: int, *, shuffle: bool = True, bptt: int | None = None, streams: int = 1
) -> Source:
    """The source of whatever a user gives as data.

    Args:
        data: a source, tensors, a ``Dataset``, a ``DataLoader``, an iterable, or tokens.
        batch_size: examples in one worker's minibatch; a ``DataLoader`` brings its own.
        seed: of the shuffling.
        shuffle: new order every epoch.
        bptt: length of a segment, for tokens.
        streams: groups of sequences, for tokens.

    Raises:
        DataError: empty, unequal lengths, values that are not finite.
        ConfigurationError: something that is no data.
    """
    if isinstance(data, Source):
        return data
    check_batch_size(batch_size)
    if bptt is not None:
        return Sequences(_tokens(data), bptt, batch_size, streams)
    if type(data) is TensorDataset:  # a subclass may have a __getitem__ of its own
        return _tensor_source(data.tensors, batch_size, seed, shuffle)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(item, Tensor) for item in data):
        return _tensor_source(tuple(data), batch_size, seed, shuffle)
    if isinstance(data, DataLoader):
        return loader_source(data, seed)
    if hasattr(data, "fetch") and hasattr(data, "__len__"):
        return Indexed(data.fetch, len(data), batch_size, seed, shuffle)
    if isinstance(data, IterableDataset):
        return Streamed(lambda: iter(DataLoader(data, batch_size)), count_samples, None, batch_size)
    if not isinstance(data, str | bytes | dict | set | Tensor | tuple):
        if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
            return Indexed(dataset_fetch(data, default_collate), len(data), batch_size, seed, shuffle)
        if isinstance(data, Iterable):
            return Streamed(lambda: iter(data), count_samples)
    raise ConfigurationError(f"`data` must be {KINDS}; got {_describe(data)}")


def _tensor_source(columns: tuple[Tensor, ...], batch_size: int, seed: int, shuffle: bool) -> Source:
    if any(column.dim() == 0 or len(column) != len(columns[0]) for column in columns):
        shapes = " and ".join(str(tuple(column.shape)) for column in columns)
        raise DataError(f"`data` has tensors of shapes {shapes}; their first dimensions must be equal")
    for position, column in enumerate(columns):
        _check_finite(("inputs", "targets")[position] if position < 2 else f"tensor {position}", column)
    return Indexed(
        tensors(*(column.detach() for column in columns)), len(columns[0]), batch_size, seed, shuffle
    )


def _check_finite(name: str, tensor: Tensor) -> None:
    # The sum is finite unless a value is not (or the sum overflows), and costs a fraction of an elementwise
    # test.
    if not tensor.is_floating_point() or torch.isfinite(tensor.sum()):
        return
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
    if bad.any():
        rows = bad.nonzero().flatten().tolist()
        raise DataError(
            f"`data` {name} have values that are not finite (NaN or Inf) in {len(rows)} of {len(tensor)}"
            f" rows, the first is row {rows[0]}; clean them, for instance with torch.nan_to_num"
        )


def _tokens(data: Any) -> Tensor:
    if isinstance(data, Tensor) and data.dim() == 1 and data.dtype == torch.int64:
        return data
    raise ConfigurationError(
        f"with `bptt`, `data` must be a 1-D int64 tensor of tokens; got {_describe(data)}"
    )


def _describe(data: Any) -> str:
    if isinstance(data, Tensor):
        return f"a tensor of shape {tuple(data.shape)} and {data.dtype}"
    if isinstance(data, tuple | list):
        kinds = [type(item).__name__ for item in data[:4]]
        arrays = "; make tensors of arrays: torch.from_numpy(array)" if "ndarray" in kinds else ""
        return f"a {type(data).__name__} of {len(data)}: {', '.join(kinds)}{arrays}"
    return type(data).__name__

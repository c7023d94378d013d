"""Sources: which batch comes next."""

from freewheel.sources.base import Batch, Carry, Lease, Source, check_batch_size, count_samples
from freewheel.sources.indexed import Indexed, dataset_fetch, tensors
from freewheel.sources.sequences import Sequences
from freewheel.sources.streamed import Streamed, loader_source

__all__ = [
    "Batch",
    "Carry",
    "Indexed",
    "Lease",
    "Sequences",
    "Source",
    "Streamed",
    "check_batch_size",
    "count_samples",
    "dataset_fetch",
    "loader_source",
    "tensors",
]

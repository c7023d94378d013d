"""What a recording is: the operations of a run in one total order, and what it is a recording of.

Two files beside the run's others: ``recording.json`` says what was run and what came of it, ``recording.npz``
holds the operations as columns; ``initial.safetensors`` are the weights it began with. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from freewheel.errors import DataError

HEADER, COLUMNS, INITIAL = "recording.json", "recording.npz", "initial.safetensors"
FORMAT = 1


class Kind(IntEnum):
    """What an operation is."""

    PULL = 0  # a worker copies the weights of all shards
    STEP = 1  # a worker begins to compute on the lease `number`, of `samples` examples
    PUSH = 2  # the server takes the push `number` of a worker, of `samples` examples, and does `status`
    RETIRE = 3  # rounds go on without the worker
    READMIT = 4  # everybody takes part in rounds again
    SETTLE = 5  # all stand still and push what they hold back; `number` is 1 at the end of the run
    EVALUATE = 6  # the model is measured


class Operation(NamedTuple):
    """One operation.

    Attributes:
        kind: what it is.
        worker: whose it is; -1 where it is nobody's.
        number: of the lease, or of the push.
        samples: examples of the lease, or of the update as it was pushed.
        staleness: that the server saw.
        status: of a push: "applied", "pending", "absorbed", "duplicate", or why it was dropped.
        version: of the weights afterwards: the number of updates applied so far.
    """

    kind: Kind
    worker: int = -1
    number: int = 0
    samples: int = 0
    staleness: int = 0
    status: str = ""
    version: int = 0


TYPES: dict[str, type[np.generic]] = {
    "kind": np.uint8,
    "worker": np.int32,
    "number": np.int64,
    "samples": np.int64,
    "staleness": np.int64,
    "status": np.uint16,
    "version": np.int64,
    "pace_worker": np.int32,
    "pace": np.float64,
}
"""The columns: those of the operations, and the paces that were read, by worker."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Recording:
    """A recorded run.

    Attributes:
        header: JSON values: ``identity`` (what was run), ``setup``, ``statuses`` (the words of the status
            column), ``final`` (the digest of the trained weights), ``finished`` (the totals), and versions.
        columns: one array an attribute of :class:`Operation`, and the paces.
    """

    header: dict[str, Any]
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns["kind"])

    def __iter__(self) -> Iterator[Operation]:
        """The operations, in order."""
        words = self.header["statuses"]
        columns = [self.columns[name].tolist() for name in Operation._fields]
        for kind, worker, number, samples, staleness, status, version in zip(*columns, strict=True):
            yield Operation(Kind(kind), worker, number, samples, staleness, words[status], version)

    @property
    def updates(self) -> int:
        """How many updates were applied."""
        return int(self.columns["version"].max(initial=0))

    def paces(self) -> list[list[float]]:
        """For every worker, the paces that it read, in order."""
        found: list[list[float]] = [[] for _ in range(self.header["setup"]["workers"])]
        for worker, pace in zip(
            self.columns["pace_worker"].tolist(), self.columns["pace"].tolist(), strict=True
        ):
            found[worker].append(pace)
        return found

    def save(self, folder: Path) -> None:
        """Writes header and columns."""
        (folder / HEADER).write_text(json.dumps(self.header, indent=2) + "\n", encoding="utf-8")
        np.savez_compressed(folder / COLUMNS, allow_pickle=False, **dict(self.columns))

    @classmethod
    def load(cls, folder: str | Path) -> Recording:
        """The recording in a run directory.

        Raises:
            DataError: there is none, it is damaged, or of another format.
        """
        folder = Path(folder)
        if not (folder / HEADER).is_file():
            raise DataError(
                f"{folder} holds no recording: there is no {HEADER}; record a run with fit(..., record=True,"
                " run_dir=...), or freewheel train --record"
            )
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            with (folder / COLUMNS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                columns = {name: arrays[name].astype(kind) for name, kind in TYPES.items()}
            _check(header, columns)
        except DataError:
            raise
        except Exception as error:  # whatever a torn file makes zip, JSON and NumPy raise
            raise DataError(
                f"the recording in {folder} is damaged: {type(error).__name__}: {error}; record the run again"
            ) from error
        return cls(header, columns)


def _check(header: dict[str, Any], columns: Columns) -> None:
    if header["format"] != FORMAT:
        raise DataError(
            f"the recording is of format {header['format']}, and this freewheel reads {FORMAT}; replay it"
            f" with freewheel {header['versions']['freewheel']}"
        )
    workers, words = header["setup"]["workers"], header["statuses"]
    lengths = {len(columns[name]) for name in Operation._fields}
    if len(lengths) != 1 or len(columns["pace"]) != len(columns["pace_worker"]):
        raise ValueError("its columns are of unequal length")
    for name, least, limit in (
        ("kind", 0, len(Kind)),
        ("worker", -1, workers),
        ("status", 0, len(words)),
        ("pace_worker", 0, workers),
    ):
        column = columns[name]
        if len(column) and not (least <= column.min() and column.max() < limit):
            raise ValueError(f"its column {name!r} has values beyond {least} to {limit - 1}")


def digest(module: nn.Module) -> str:
    """The SHA-256 of a module's weights and buffers: equal when they are, bit for bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()

"""The idx format of MNIST and its kin, gzipped.

Big-endian: two zero bytes, the type of an entry (8: unsigned byte), the number of dimensions, each dimension
as four bytes, then the entries. Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from freewheel.data.decoded import Block, Pixels, Source
from freewheel.errors import DataError

_UNSIGNED_BYTE = 8
_ROWS = 2048  # images decoded at a time


class _Stream(Protocol):
    def read(self, amount: int, /) -> bytes: ...


def source(key: str, image_file: Path, label_file: Path) -> Source:
    """Return a source of grey images from two gzipped idx files.

    Args:
        key: see ``Source``.
        image_file: three dimensions, (n, h, w).
        label_file: one dimension, (n,).

    Raises:
        DataError: a file is missing, damaged, or their counts differ.
    """
    with _opened(image_file) as stream:
        n, height, width = _header(stream, image_file, 3)
    labels = read_labels(label_file)
    if len(labels) != n:
        raise DataError(f"{image_file} has {n} images, {label_file} {len(labels)} labels; fetch both again")
    return Source(key, (n, 1, height, width), lambda: _blocks(image_file, labels))


def read_labels(file: Path) -> Pixels:
    """Read a gzipped idx file of labels, (n,) uint8.

    Raises:
        DataError: the file is missing or damaged.
    """
    with _opened(file) as stream:
        (n,) = _header(stream, file, 1)
        labels = np.frombuffer(_exactly(stream, n, file), np.uint8)
        _ended(stream, file)
    return labels


def encode(array: Pixels) -> bytes:
    """Write an array as a gzipped idx file: without name and time, so equal arrays give equal bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, _UNSIGNED_BYTE, array.ndim, *array.shape)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(header + array.tobytes())
    return buffer.getvalue()


def _blocks(file: Path, labels: Pixels) -> Iterator[Block]:
    with _opened(file) as stream:
        n, height, width = _header(stream, file, 3)
        for start in range(0, n, _ROWS):
            count = min(_ROWS, n - start)
            pixels = np.frombuffer(_exactly(stream, count * height * width, file), np.uint8)
            rows = labels[start : start + count].astype(np.int64)
            yield Block(start, pixels.reshape(count, 1, height, width), rows)
        _ended(stream, file)


@contextmanager
def _opened(file: Path) -> Iterator[_Stream]:
    try:
        with gzip.open(file, "rb") as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"file {file} is not a whole gzip file ({error}); delete it and try again") from error


def _header(stream: _Stream, file: Path, dimensions: int) -> tuple[int, ...]:
    magic = _exactly(stream, 4, file)
    if magic != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(f"file {file} is no idx file of {dimensions} dimensions; delete it and try again")
    sizes: tuple[int, ...] = struct.unpack(f">{dimensions}I", _exactly(stream, 4 * dimensions, file))
    return sizes


def _exactly(stream: _Stream, count: int, file: Path) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"file {file} is truncated: {len(data)} of {count} bytes; delete it and try again")
    return data


def _ended(stream: _Stream, file: Path) -> None:
    if stream.read(1):
        raise DataError(f"file {file} is longer than its header says; delete it and try again")

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from freewheel.data import idx
from freewheel.data.decoded import Look, load
from freewheel.errors import DataError

PIXELS = np.random.RandomState(0).randint(0, 256, (5000, 2, 3)).astype(np.uint8)
LABELS = np.arange(5000, dtype=np.uint8) % 10
LOOK = Look((0.5,), (0.5,), tuple("0123456789"))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    images, labels = tmp_path / "images.gz", tmp_path / "labels.gz"
    images.write_bytes(idx.encode(PIXELS))
    labels.write_bytes(idx.encode(LABELS))
    return images, labels


def test_what_was_written_is_read_back(files: tuple[Path, Path]) -> None:
    data = load(idx.source("k", *files), LOOK, streamed=False)
    assert np.array_equal(data.images.numpy()[:, 0], PIXELS)
    assert np.array_equal(data.labels.numpy(), LABELS)


def test_the_bytes_are_those_of_the_format() -> None:
    plain = gzip.decompress(idx.encode(np.array([[1, 2, 3], [4, 5, 255]], np.uint8)))
    assert plain == bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])


def test_the_gzip_header_has_no_time() -> None:
    assert idx.encode(LABELS)[4:8] == bytes(4)


def rewrite(file: Path, change: slice, extra: bytes = b"") -> None:
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[change] + extra))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("change", "extra", "message"),
    [
        (slice(None, -1), b"", "is truncated"),
        (slice(None, 6), b"", "is truncated"),
        (slice(None), b"x", "is longer than its header says"),
        (slice(1, None), b"", "is no idx file of"),
    ],
)
def test_damaged_contents_are_named(
    files: tuple[Path, Path], which: int, change: slice, extra: bytes, message: str
) -> None:
    rewrite(files[which], change, extra)
    with pytest.raises(DataError, match=f"{files[which].name} {message}"):
        load(idx.source("k", *files), LOOK, streamed=False)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_a_truncated_gzip_file_is_named(files: tuple[Path, Path], which: int, keep: float) -> None:
    data = files[which].read_bytes()
    files[which].write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=rf"{files[which].name}.*delete it"):
        load(idx.source("k", *files), LOOK, streamed=False)


def test_another_kind_of_file_is_named(files: tuple[Path, Path]) -> None:
    files[0].write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=r"images\.gz is not a whole gzip file"):
        idx.source("k", *files)


def test_a_missing_file_is_named(files: tuple[Path, Path]) -> None:
    files[1].unlink()
    with pytest.raises(DataError, match=r"labels\.gz"):
        idx.source("k", *files)


def test_counts_must_be_equal(files: tuple[Path, Path]) -> None:
    files[1].write_bytes(idx.encode(LABELS[:-1]))
    with pytest.raises(DataError, match=r"has 5000 images, .* 4999 labels"):
        idx.source("k", *files)

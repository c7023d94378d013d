"""CIFAR-10: 60,000 colour pictures of things and animals, 32 by 32, ten classes.

Reference: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". The authors state no
licence. The binary version is read, not the Python one: that is a pickle, and unpickling runs what it holds.
"""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from freewheel.data.decoded import Block, Look, Pixels, Source, load
from freewheel.data.download import download
from freewheel.data.files import DataFile, sha256_of, verify
from freewheel.data.images import Images
from freewheel.data.places import cache_folder, find
from freewheel.errors import ConfigurationError, DataError

FOLDER = "cifar10"
JPEG_FOLDER = "cifar10-jpeg"
ADDRESS = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE = DataFile(
    "cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "c32a1d4ab5d03f1284b67883e8d87530",
)
JPEG_NOTE = (
    "read from a JPEG copy of CIFAR-10, which is lossy: accuracies are not comparable with published ones; "
    "the classes take turns, in the official order within each"
)

# Mean and deviation of the 50,000 training images.
LOOK = Look(
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
)

_MEMBERS = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
_PER_CLASS = {"train": 5000, "test": 1000}
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue, each row by row
_ROWS = 500  # images decoded at a time


def cifar10(
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    *,
    streamed: bool | None = None,
    url: str | None = None,
    quiet: bool = False,
) -> Images:
    """Load CIFAR-10: 50,000 training or 10,000 test images, (n, 3, 32, 32).

    ::

        train = cifar10("train", streamed=True)

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with ``cifar-10-binary.tar.gz``, itself or in a folder ``cifar10``. Without it the file
            is looked for under ``$FREEWHEEL_DATA``, then in the cache, then downloaded into the cache. Where
            it is in none of these, but ``root`` or ``$FREEWHEEL_DATA`` has a folder ``cifar10-jpeg`` with
            ``cifar10-train-jpeg.zip`` and ``cifar10-test-jpeg.zip`` (members ``train/<class>/<number>.jpg``),
            that lossy copy is read; the ``note`` of the result says so.
        streamed: see ``freewheel.data.decoded.load``.
        url: address of the folder to download from; the official one by default.
        quiet: show no progress of a download.

    Raises:
        ConfigurationError: unknown split.
        DataError: the files are missing and cannot be fetched, or are damaged.
    """
    if split not in _MEMBERS:
        raise ConfigurationError(f"`split` must be 'train' or 'test', got {split!r}")
    folder = present(root)
    if folder is not None and not (folder / ARCHIVE.name).is_file():
        return load(jpeg_source(folder / _zip(split), split), LOOK, streamed=streamed, note=JPEG_NOTE)
    archive = verify((folder or fetch(url=url, quiet=quiet)) / ARCHIVE.name, ARCHIVE)
    return load(binary_source(archive, split), LOOK, streamed=streamed)


def present(root: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the folder that holds the binary file, else the JPEG copy, else None.

    Raises:
        DataError: ``root`` has neither, or ``FREEWHEEL_DATA`` names no folder.
    """
    zips = [_zip("train"), _zip("test")]
    if root is None:
        return find(FOLDER, [ARCHIVE.name]) or find(JPEG_FOLDER, zips)
    try:
        return find(FOLDER, [ARCHIVE.name], root)
    except DataError:
        # Of the two errors the one about the official file helps more.
        base = Path(root).expanduser()
        if not any(all((place / name).is_file() for name in zips) for place in (base / JPEG_FOLDER, base)):
            raise
        return find(JPEG_FOLDER, zips, root)


def fetch(*, url: str | None = None, quiet: bool = False) -> Path:
    """Download the binary version into the cache if it is not there yet; return its folder."""
    folder = cache_folder() / FOLDER
    if not (folder / ARCHIVE.name).is_file():
        download(ARCHIVE, (url or ADDRESS).rstrip("/") + "/" + ARCHIVE.name, folder, quiet=quiet)
    return folder


def binary_source(archive: Path, split: str, per_member: int = 10_000) -> Source:
    """Return a source that reads the official binary archive.

    Args:
        archive: a checked ``cifar-10-binary.tar.gz``.
        split: ``"train"`` or ``"test"``.
        per_member: images in each member.
    """
    members = _MEMBERS[split]
    key = f"cifar10-{split}-{sha256_of(archive)[:16]}"
    return Source(
        key, (per_member * len(members), *_SHAPE), lambda: _binary_blocks(archive, members, per_member)
    )


def _binary_blocks(archive: Path, members: list[str], per_member: int) -> Iterator[Block]:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:  # in the archive's order: going back would decompress it again
                name = member.name.rsplit("/", 1)[-1]
                stream = tar.extractfile(member) if name in members else None
                if stream is None:
                    continue
                if member.size != per_member * _RECORD:
                    wanted = per_member * _RECORD
                    raise DataError(f"{archive}: {name} should have {wanted} bytes, has {member.size}")
                records = np.frombuffer(stream.read(), np.uint8).reshape(per_member, _RECORD)
                pixels = records[:, 1:].reshape(per_member, *_SHAPE)
                yield Block(members.index(name) * per_member, pixels, records[:, 0].astype(np.int64))
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"file {archive} is damaged ({error}); delete it and try again") from error


def jpeg_source(archive: Path, split: str, per_class: int | None = None) -> Source:
    """Return a source that decodes the JPEG copy; image k of every class in turn, then image k + 1.

    Args:
        archive: zip with members ``<split>/<class>/<number>.jpg``.
        split: ``"train"`` or ``"test"``.
        per_class: images of each class; those of the full set by default.

    Raises:
        DataError: the archive is damaged, or lacks images.
    """
    per_class = per_class or _PER_CLASS[split]
    try:
        with zipfile.ZipFile(archive) as bundle:
            names = sorted(name for name in bundle.namelist() if name.endswith(".jpg"))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"file {archive} is no whole zip file ({error}); fetch it again") from error
    groups = [[name for name in names if name.startswith(f"{split}/{label}/")] for label in LOOK.classes]
    counts = [len(group) for group in groups]
    if set(counts) != {per_class}:
        raise DataError(f"{archive}: expected {per_class} images of each class, got {counts}; fetch it again")
    order = [(name, label) for row in zip(*groups, strict=True) for label, name in enumerate(row)]
    key = f"cifar10-jpeg-{split}-{sha256_of(archive)[:16]}"
    return Source(key, (len(order), *_SHAPE), lambda: _jpeg_blocks(archive, order))


def _jpeg_blocks(archive: Path, order: list[tuple[str, int]]) -> Iterator[Block]:
    try:
        with zipfile.ZipFile(archive) as bundle:
            for start in range(0, len(order), _ROWS):
                rows = order[start : start + _ROWS]
                pixels = np.stack([_decode(bundle.read(name), f"{archive}: {name}") for name, _ in rows])
                yield Block(start, pixels, np.array([label for _, label in rows], np.int64))
    except (OSError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"file {archive} is damaged ({error}); fetch it again") from error


def _decode(data: bytes, name: str) -> Pixels:
    from PIL import Image  # imported here: nobody else needs it

    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        if image.size != (32, 32):
            raise DataError(f"{name}: expected 32 by 32 pixels, got {image.size}; fetch the archive again")
        pixels: Pixels = np.asarray(image.convert("RGB"), np.uint8).transpose(2, 0, 1)
    return pixels


def _zip(split: str) -> str:
    return f"cifar10-{split}-jpeg.zip"

"""Decoding a source of images once: into memory, or into a memory-mapped file in the cache."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freewheel.data.images import Images, map_images
from freewheel.data.places import cache_folder
from freewheel.errors import DataError

MEMORY_SHARE = 0.25
"""Sets whose pixels take more than this share of the available memory are streamed from disk."""

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Some images of a source: the first one's row, pixels (k, c, h, w), labels (k,)."""

    start: int
    pixels: Pixels
    labels: Labels


class Source(NamedTuple):
    """Encoded images on disk, with the sums already checked.

    Attributes:
        key: names the decoded copy; holds the sum of the source, so that another source is another copy.
        shape: (n, c, h, w).
        blocks: decodes all images, some at a time, in any order.
    """

    key: str
    shape: tuple[int, int, int, int]
    blocks: Callable[[], Iterator[Block]]


class Look(NamedTuple):
    """What the pixels and labels of a set mean; see ``Images``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


def load(source: Source, look: Look, *, streamed: bool | None = None, note: str = "") -> Images:
    """Decode a source.

    Args:
        source: what to decode.
        look: means, deviations and class names.
        streamed: True maps a decoded copy in the cache, made at the first time; False decodes into memory;
            None does the first where the pixels take more than ``MEMORY_SHARE`` of the available memory.
        note: passed on.

    Raises:
        DataError: the source is damaged, or ``streamed=True`` and the cache cannot be written.
    """
    if streamed or (streamed is None and _is_large(source)):
        folder = cache_folder() / "decoded"
        try:
            file, labels = mapped(source, folder)
            return Images(map_images(file), labels, *look, note=note, file=file)
        except OSError as error:
            reason = f"the cache folder {folder} cannot be written ({error.strerror or error})"
            if streamed:
                raise DataError(
                    f"{reason}; name another one in FREEWHEEL_CACHE, or use streamed=False"
                ) from error
            note = f"{note}; held in memory: {reason}".removeprefix("; ")
    pixels = np.empty(source.shape, np.uint8)
    decoded = _fill(source, pixels)
    return Images(torch.from_numpy(pixels), decoded, *look, note=note)


def mapped(source: Source, folder: Path) -> tuple[Path, Tensor]:
    """Return the decoded copy of a source, made if there is no whole one yet.

    Args:
        source: what to decode.
        folder: where decoded copies are kept.

    Returns:
        The ``.npy`` file with the pixels, and the labels.

    Raises:
        OSError: the folder cannot be written.
        DataError: the source is damaged.
    """
    file, label_file = folder / f"{source.key}.images.npy", folder / f"{source.key}.labels.npy"
    if (labels := _ready(source, file, label_file)) is not None:
        return file, labels
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{source.key}.{secrets.token_hex(4)}.part"
    try:
        pixels = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=source.shape)
        labels = _fill(source, pixels)
        pixels.flush()
        del pixels  # unmapped before it is renamed
        _write_labels(label_file, labels)  # first: pixels under their own name mean that the copy is whole
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
    return file, labels


def _ready(source: Source, file: Path, label_file: Path) -> Tensor | None:
    # A copy that does not fit is no error: it can be made again.
    try:
        labels = np.load(label_file, allow_pickle=False)
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = pixels.dtype == np.uint8 and pixels.shape == source.shape
    whole = whole and labels.dtype == np.int64 and labels.shape == source.shape[:1]
    return torch.from_numpy(labels) if whole else None


def _write_labels(file: Path, labels: Tensor) -> None:
    partial = file.with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as stream:
            np.save(stream, labels.numpy(), allow_pickle=False)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _fill(source: Source, pixels: Pixels) -> Tensor:
    labels = np.empty(source.shape[0], np.int64)
    filled = 0
    for block in source.blocks():
        rows = slice(block.start, block.start + len(block.labels))
        pixels[rows] = block.pixels
        labels[rows] = block.labels
        filled += len(block.labels)
    if filled != source.shape[0]:
        raise DataError(f"{source.key}: expected {source.shape[0]} images, got {filled}; fetch the set again")
    return torch.from_numpy(labels)


def _is_large(source: Source) -> bool:
    # Imported by name: psutil has no types of its own, and nothing else here needs it.
    available: int = import_module("psutil").virtual_memory().available
    return math.prod(source.shape) > MEMORY_SHARE * available

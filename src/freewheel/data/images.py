"""Labelled images as bytes, normalised when a batch is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from freewheel.errors import ConfigurationError, DataError


@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[Tensor, int]]):
    """Labelled images, kept as bytes in memory or in a memory-mapped file.

    A pixel ``p`` of channel ``c`` comes out as ``(p / 255 - mean[c]) / std[c]``. ``fetch``, ``tensors`` and
    indexing give the same numbers, bit for bit.

    Attributes:
        images: (n, c, h, w) uint8.
        labels: (n,) int64, from 0.
        mean: mean of each channel, pixels taken as 0 to 1.
        std: standard deviation of each channel, likewise.
        classes: name of each label.
        note: what a user should know about this copy, or empty.
        file: the memory-mapped file behind ``images``, or None where they are in memory.

    Raises:
        DataError: shapes, dtypes or labels do not fit each other.

    Example:
        >>> import torch
        >>> from freewheel.data import Images
        >>> pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> data = Images(pixels, torch.tensor([0, 1]), mean=(0.5,), std=(0.5,), classes=("dark", "light"))
        >>> data.fetch(torch.tensor([1, 0]))[0].flatten()
        tensor([ 1., -1.])
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    note: str = ""
    file: Path | None = None
    _scale: Tensor = field(init=False, repr=False)
    _shift: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        std = torch.tensor(self.std, dtype=torch.float64)
        scale = 1.0 / (255.0 * std)
        shift = -torch.tensor(self.mean, dtype=torch.float64) / std
        object.__setattr__(self, "_scale", scale.float().reshape(-1, 1, 1))
        object.__setattr__(self, "_shift", shift.float().reshape(-1, 1, 1))

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one normalised image, (c, h, w) float32, and its label."""
        return self._normalised(self.images[index]), int(self.labels[index])

    @property
    def streamed(self) -> bool:
        """Whether the pixels are read from disk as they are needed."""
        return self.file is not None

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch.

        Args:
            indices: (b,) int64.

        Returns:
            The normalised images, (b, c, h, w) float32, and their labels, (b,) int64.
        """
        return self._normalised(self.images.index_select(0, indices)), self.labels.index_select(0, indices)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return everything, normalised, in memory: (n, c, h, w) float32 and (n,) int64.

        It takes four bytes a pixel: use ``fetch`` where that is too much.
        """
        return self._normalised(self.images), self.labels

    def subset(self, n: int, seed: int = 0) -> Images:
        """Return ``n`` images in memory, drawn without replacement, with the classes in the same proportions.

        Args:
            n: how many, from 1 to ``len(self)``.
            seed: of the draw.

        Raises:
            ConfigurationError: ``n`` is out of range.
        """
        rows = torch.from_numpy(stratified(self.labels.numpy(), n, seed))
        images, labels = self.images.index_select(0, rows), self.labels.index_select(0, rows)
        return Images(images, labels, self.mean, self.std, self.classes, self.note)

    def _normalised(self, pixels: Tensor) -> Tensor:
        # Two roundings in a fixed order: a fused multiply-add would differ between the vector body and the
        # scalar tail of a loop, and so between a batch and a single image.
        return pixels.to(torch.float32).mul_(self._scale).add_(self._shift)

    def __getstate__(self) -> dict[str, Any]:
        """Leave mapped pixels out: a copy in another process maps the file again, and no page is sent."""
        state = dict(self.__dict__)
        if self.file is not None:
            del state["images"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state over, and map the file again."""
        self.__dict__.update(state)
        if self.file is not None:
            self.__dict__["images"] = map_images(self.file)


def map_images(path: Path) -> Tensor:
    """Map a ``.npy`` file of uint8 images; pages are read when they are touched.

    Raises:
        DataError: the file is missing, or not such a file.
    """
    try:
        # Copy-on-write: torch wants a writable array, and nothing written to it reaches the file.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"file {path} cannot be mapped ({error}); delete it and load the set again"
        ) from error
    if array.dtype != np.uint8 or array.ndim != 4:
        found = f"{array.dtype} of shape {array.shape}"
        raise DataError(f"file {path}: expected uint8 (n, c, h, w), got {found}; delete it and try again")
    return torch.from_numpy(array)


def stratified(labels: npt.NDArray[np.int64], n: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``n`` rows without replacement, keeping the proportions of the classes.

    Each class gets ``n`` times its share, rounded down; what is left goes to the largest remainders.

    Args:
        labels: (m,) int64.
        n: how many rows, from 1 to m.
        seed: of the draw.

    Returns:
        The rows, (n,) int64, ascending.

    Raises:
        ConfigurationError: ``n`` is out of range.

    Example:
        >>> import numpy as np
        >>> from freewheel.data.images import stratified
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> labels[stratified(labels, 3, seed=0)].tolist()
        [0, 0, 1]
    """
    if not 1 <= n <= len(labels):
        raise ConfigurationError(f"`n` must be from 1 to {len(labels)}, the size of the set; got {n}")
    classes, counts = np.unique(labels, return_counts=True)
    share, remainder = np.divmod(counts * n, len(labels))
    share[np.argsort(-remainder, kind="stable")[: n - share.sum()]] += 1
    # RandomState, not default_rng: its stream is frozen (NEP 19), so the embedded sets can be made again.
    draw = np.random.RandomState(seed)
    chosen = [
        draw.permutation(np.flatnonzero(labels == label))[:take]
        for label, take in zip(classes, share, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _check(data: Images) -> None:
    if data.images.dtype != torch.uint8 or data.images.ndim != 4:
        found = f"{data.images.dtype} of shape {tuple(data.images.shape)}"
        raise DataError(f"`images` must be uint8 of shape (n, c, h, w), got {found}")
    if data.labels.dtype != torch.int64 or data.labels.shape != data.images.shape[:1]:
        found = f"{data.labels.dtype} of shape {tuple(data.labels.shape)}"
        raise DataError(f"`labels` must be int64, one for each of {len(data.images)} images, got {found}")
    channels = data.images.shape[1]
    if len(data.mean) != channels or len(data.std) != channels or min(data.std) <= 0:
        found = f"mean {data.mean} and std {data.std}"
        raise DataError(
            f"`mean` and `std` need one value, std > 0, for each of {channels} channels; got {found}"
        )
    if len(data.labels) == 0:
        raise DataError("`images` is empty; give at least one image")
    low, high = int(data.labels.min()), int(data.labels.max())
    if low < 0 or high >= len(data.classes):
        raise DataError(
            f"`labels` must lie in 0..{len(data.classes) - 1}, got {low}..{high}; check `classes`"
        )

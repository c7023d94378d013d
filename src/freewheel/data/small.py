"""The sets inside the package: they need no network. ``scripts/make_embedded_data.py`` makes them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from freewheel.data.decoded import load
from freewheel.data.fashion import LOOK
from freewheel.data.files import DataFile, verify
from freewheel.data.idx import source
from freewheel.data.images import Images
from freewheel.errors import ConfigurationError, DataError

FOLDER = Path(__file__).parent / "embedded"
SUMS = "checksums.json"
IMAGE_FILES = tuple(
    f"fashion-mnist-small-{split}-{kind}-ubyte.gz"
    for split in ("train", "test")
    for kind in ("images-idx3", "labels-idx1")
)


def fashion_mnist_small(split: str = "train") -> Images:
    """Load the embedded part of Fashion-MNIST: 10,000 training or 2,000 test images, (n, 1, 28, 28).

    Each class has 1,000 and 200, drawn from the official training and test images.

    Args:
        split: ``"train"`` or ``"test"``.

    Raises:
        ConfigurationError: unknown split.
        DataError: the installed file is damaged.

    Example:
        >>> from freewheel.data import fashion_mnist_small
        >>> test = fashion_mnist_small("test")
        >>> len(test), test.labels.bincount().tolist()[:3], test[0][0].shape
        (2000, [200, 200, 200], torch.Size([1, 28, 28]))
    """
    if split not in ("train", "test"):
        raise ConfigurationError(f"`split` must be 'train' or 'test', got {split!r}")
    name = f"fashion-mnist-small-{split}"
    images, labels = verified(f"{name}-images-idx3-ubyte.gz"), verified(f"{name}-labels-idx1-ubyte.gz")
    note = "a stratified part of Fashion-MNIST: its accuracies are not comparable with published ones"
    return load(source(name, images, labels), LOOK, streamed=False, note=note)


def verified(name: str) -> Path:
    """Return the path of an embedded file after checking its recorded sum.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return verify(FOLDER / name, recorded(name))
    except DataError as error:
        raise DataError(f"embedded file {name} is damaged ({error}); install freewheel again") from error


def recorded(name: str) -> DataFile:
    """Return the recorded size and sum of an embedded file.

    Raises:
        DataError: there is no record of it.
    """
    try:
        entry = _sums()[name]
        return DataFile(name, entry["size"], entry["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"no record of embedded file {name} ({error}); install freewheel again") from error


@cache
def _sums() -> dict[str, Any]:
    files: dict[str, Any] = json.loads((FOLDER / SUMS).read_text(encoding="utf-8"))["files"]
    return files

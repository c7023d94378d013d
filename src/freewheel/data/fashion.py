"""Fashion-MNIST: 70,000 grey pictures of clothing, 28 by 28, ten classes.

Reference: Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747. MIT licence, (c) 2017 Zalando SE.
"""

from __future__ import annotations

import os
from pathlib import Path

from freewheel.data.decoded import Look, load
from freewheel.data.download import download
from freewheel.data.files import DataFile, verify
from freewheel.data.idx import source
from freewheel.data.images import Images
from freewheel.data.places import cache_folder, find
from freewheel.errors import ConfigurationError

FOLDER = "fashion-mnist"
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# Mean and deviation of the 60,000 training images.
LOOK = Look(
    mean=(0.2860,),
    std=(0.3530,),
    classes=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
)

# Sizes and SHA-256 of the official files; the MD5 sums are those in the authors' README.
FILES: dict[str, tuple[DataFile, DataFile]] = {
    "train": (
        DataFile(
            "train-images-idx3-ubyte.gz",
            26_421_880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        DataFile(
            "train-labels-idx1-ubyte.gz",
            29_515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
    ),
    "test": (
        DataFile(
            "t10k-images-idx3-ubyte.gz",
            4_422_102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte.gz",
            5_148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
}


def fashion_mnist(
    split: str = "train",
    root: str | os.PathLike[str] | None = None,
    *,
    streamed: bool | None = None,
    url: str | None = None,
    quiet: bool = False,
) -> Images:
    """Load Fashion-MNIST: 60,000 training or 10,000 test images, (n, 1, 28, 28).

    ::

        train, test = fashion_mnist("train"), fashion_mnist("test")

    Args:
        split: ``"train"`` or ``"test"``.
        root: folder with the four official files, or with a folder ``fashion-mnist`` that has them. Without
            it they are looked for under ``$FREEWHEEL_DATA``, then in the cache, then downloaded into it.
        streamed: see ``freewheel.data.decoded.load``.
        url: address of the folder to download from; the official one by default.
        quiet: show no progress of a download.

    Raises:
        ConfigurationError: unknown split.
        DataError: the files are missing and cannot be fetched, or are damaged.
    """
    if split not in FILES:
        raise ConfigurationError(f"`split` must be 'train' or 'test', got {split!r}")
    files = FILES[split]
    folder = find(FOLDER, [file.name for file in files], root) or fetch(split, url=url, quiet=quiet)
    images, labels = (verify(folder / file.name, file) for file in files)
    return load(source(f"{FOLDER}-{split}-{files[0].sha256[:16]}", images, labels), LOOK, streamed=streamed)


def fetch(*splits: str, url: str | None = None, quiet: bool = False) -> Path:
    """Download the files of some splits into the cache, those that are not there yet; return the folder."""
    folder = cache_folder() / FOLDER
    for file in (file for split in splits for file in FILES[split]):
        if not (folder / file.name).is_file():
            download(file, (url or ADDRESS).rstrip("/") + "/" + file.name, folder, quiet=quiet)
    return folder

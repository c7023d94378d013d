"""The data sets that the command line lists and fetches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from freewheel.data import cifar, fashion, shakespeare, small
from freewheel.data.places import find

_FASHION_FILES = [file for files in fashion.FILES.values() for file in files]


@dataclass(frozen=True)
class DataSet:
    """What is known about a data set, loaded or not.

    Attributes:
        name: what the user types.
        description: one line.
        size: of its files, in bytes.
        licence: its terms, in a few words.
        source: address of the authors' copy.
        embedded: it is inside the package and needs no download.
    """

    name: str
    description: str
    size: int
    licence: str
    source: str
    embedded: bool
    _find: Callable[[], Path | None] = field(repr=False)
    _fetch: Callable[[bool], Path] = field(repr=False)

    def present(self) -> Path | None:
        """Return where its files are on this machine, or None.

        Raises:
            DataError: ``FREEWHEEL_DATA`` names no folder.
        """
        return self._find()

    def fetch(self, *, quiet: bool = False) -> Path:
        """Return where its files are, after downloading them into the cache if they are nowhere yet.

        Args:
            quiet: show no progress.

        Raises:
            DataError: they cannot be downloaded.
        """
        return self._find() or self._fetch(quiet)


def catalogue() -> tuple[DataSet, ...]:
    """Return all data sets.

    Example:
        >>> from freewheel.data import catalogue
        >>> [data.name for data in catalogue()]
        ['fashion-mnist-small', 'tiny-shakespeare', 'fashion-mnist', 'cifar10']
    """
    return (
        _embedded(
            "fashion-mnist-small",
            "part of Fashion-MNIST: 10,000 training and 2,000 test images, 28x28 grey, 10 classes",
            "MIT, (c) 2017 Zalando SE",
            fashion.ADDRESS,
            small.IMAGE_FILES,
        ),
        _embedded(
            "tiny-shakespeare",
            "plays of Shakespeare: 1,115,394 characters, 65 of them distinct",
            "public domain",
            shakespeare.ADDRESS,
            (shakespeare.FILE,),
        ),
        _FASHION_MNIST,
        _CIFAR10,
    )


def _embedded(name: str, description: str, licence: str, source: str, files: tuple[str, ...]) -> DataSet:
    def find_embedded() -> Path:
        paths = [small.verified(file) for file in files]
        return paths[0] if len(paths) == 1 else small.FOLDER

    size = sum(small.recorded(file).size for file in files)
    return DataSet(
        name, description, size, licence, source, True, find_embedded, lambda quiet: find_embedded()
    )


_FASHION_MNIST = DataSet(
    name="fashion-mnist",
    description="clothing: 60,000 training and 10,000 test images, 28x28 grey, 10 classes",
    size=sum(file.size for file in _FASHION_FILES),
    licence="MIT, (c) 2017 Zalando SE",
    source=fashion.ADDRESS,
    embedded=False,
    _find=lambda: find(fashion.FOLDER, [file.name for file in _FASHION_FILES]),
    _fetch=lambda quiet: fashion.fetch("train", "test", quiet=quiet),
)
_CIFAR10 = DataSet(
    name="cifar10",
    description="things and animals: 50,000 training and 10,000 test images, 32x32 colour, 10 classes",
    size=cifar.ARCHIVE.size,
    licence="none stated by the authors; cite Krizhevsky 2009",
    source=cifar.ADDRESS + cifar.ARCHIVE.name,
    embedded=False,
    _find=cifar.present,
    _fetch=lambda quiet: cifar.fetch(quiet=quiet),
)

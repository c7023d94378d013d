"""Where data sets are looked for: a folder the user names, ``FREEWHEEL_DATA``, the cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from freewheel.errors import DataError


def cache_folder() -> Path:
    """Return the cache folder: ``FREEWHEEL_CACHE``, else ``~/.cache/freewheel``. It may not exist yet."""
    named = os.environ.get("FREEWHEEL_CACHE", "")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "freewheel"


def find(name: str, files: Sequence[str], root: str | os.PathLike[str] | None = None) -> Path | None:
    """Find the folder that holds all files of a data set.

    Looked for, in this order: ``root/name`` and ``root`` itself; ``$FREEWHEEL_DATA/name``; the cache. With
    ``root`` nowhere else is looked: a user who names a folder should not get data from another one.

    Args:
        name: the set's folder, ``"fashion-mnist"`` say.
        files: names of the files that must all be there.
        root: a folder that the user names, or None.

    Returns:
        The folder, or None where the set still has to be fetched.

    Raises:
        DataError: ``root`` lacks the files, or ``FREEWHEEL_DATA`` names no folder.
    """
    if root is not None:
        return _in_root(name, files, Path(root).expanduser())
    places = [cache_folder() / name]
    if shared := os.environ.get("FREEWHEEL_DATA", ""):
        if not Path(shared).is_dir():
            raise DataError(f"FREEWHEEL_DATA names no folder: {shared!r}; create it, or unset the variable")
        places.insert(0, Path(shared) / name)
    return next((place for place in places if _holds(place, files)), None)


def _in_root(name: str, files: Sequence[str], root: Path) -> Path:
    if not root.is_dir():
        raise DataError(f"`root` is not a folder: {str(root)!r}; leave it out to use the cache and downloads")
    for place in (root / name, root):
        if _holds(place, files):
            return place
    wanted = ", ".join(files)
    raise DataError(f"`root`: {root / name} and {root} lack {wanted}; leave `root` out to download the set")


def _holds(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / file).is_file() for file in files)

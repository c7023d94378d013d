"""Files with recorded sums: what they are called, and whether they are what they claim to be."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from freewheel.errors import DataError

_BLOCK = 1 << 20  # bytes read at a time


class DataFile(NamedTuple):
    """A published file.

    Attributes:
        name: its file name.
        size: in bytes.
        sha256: its SHA-256 sum, hexadecimal.
        md5: the MD5 sum that the authors published, or empty; checked as well, so that the file is theirs.
    """

    name: str
    size: int
    sha256: str
    md5: str = ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 sum of a file, hexadecimal."""
    return _sums(path, ("sha256",))[0]


def problem(path: Path, file: DataFile) -> str:
    """Say what is wrong with a file, or return an empty string.

    Args:
        path: the file on disk.
        file: what it should be.
    """
    size = path.stat().st_size
    if size != file.size:
        return f"expected {file.size} bytes, got {size}" + (" (truncated)" if size < file.size else "")
    wanted = {"sha256": file.sha256} | ({"md5": file.md5} if file.md5 else {})
    for (algorithm, expected), actual in zip(wanted.items(), _sums(path, tuple(wanted)), strict=True):
        if actual != expected:
            return f"bad checksum: expected {algorithm} {expected}, got {actual}"
    return ""


def verify(path: Path, file: DataFile) -> Path:
    """Return ``path`` if the file there is the published one.

    Args:
        path: the file on disk.
        file: what it should be.

    Raises:
        DataError: it is missing, truncated, or its sum differs; the message names both sums and the remedy.

    Example:
        >>> import pathlib, tempfile
        >>> from freewheel.data.files import DataFile, verify
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.gz"
        >>> _ = path.write_bytes(b"half")
        >>> verify(path, DataFile("a.gz", 8, "00"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        freewheel.errors.DataError: file ...a.gz: expected 8 bytes, got 4 (truncated); delete it and try again
    """
    try:
        wrong = problem(path, file)
    except OSError as error:
        raise DataError(
            f"file {path} cannot be read ({error.strerror or error}); check the folder"
        ) from error
    if wrong:
        raise DataError(f"file {path}: {wrong}; delete it and try again")
    return path


def _sums(path: Path, algorithms: tuple[str, ...]) -> list[str]:
    digests = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for digest in digests:
                digest.update(block)
    return [digest.hexdigest() for digest in digests]

"""Fetching a published file: atomic, checked, with a progress bar."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from freewheel.data.files import DataFile, problem
from freewheel.errors import ConfigurationError, DataError

_BLOCK = 1 << 18  # bytes received at a time
_STALE_S = 86_400.0  # a partial file older than a day belongs to a process that was killed


class _Stream(Protocol):
    def read(self, amount: int, /) -> bytes: ...


def download(file: DataFile, url: str, folder: Path, *, quiet: bool = False, timeout_s: float = 30.0) -> Path:
    """Fetch ``url`` into ``folder`` and check it.

    The file appears under its name only when complete and checked. A download that was cut off starts again
    from the beginning: resuming would save little on files of this size, and a server that ignores ranges, or
    changed the file meanwhile, would spoil the result.

    Args:
        file: name, size and sums of what is fetched.
        url: its full address, http or https.
        folder: where it goes; created if missing.
        quiet: show nothing.
        timeout_s: seconds that the server may stay silent.

    Returns:
        The path of the file.

    Raises:
        ConfigurationError: ``url`` is not an http address.
        DataError: no network, an HTTP error, a truncated file, a bad sum, or a folder that cannot be written.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"`url` must start with http:// or https://, got {url!r}")
    partial = folder / f"{file.name}.{secrets.token_hex(4)}.part"
    try:
        with _disk(folder):  # before the network is asked: a folder that cannot be written is known at once
            folder.mkdir(parents=True, exist_ok=True)
            partial.touch(exist_ok=False)
        _remove_stale(folder, file.name)
        _receive(file, url, partial, quiet, timeout_s)
        if wrong := problem(partial, file):
            raise DataError(
                f"download of {url}: {wrong}; nothing was kept: try again, or put the right {file.name} "
                f"into {folder}"
            )
        with _disk(folder):
            os.replace(partial, folder / file.name)
    finally:
        # The folder may be the thing that failed; that error is the one to show.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return folder / file.name


def _receive(file: DataFile, url: str, partial: Path, quiet: bool, timeout_s: float) -> None:
    from urllib.request import Request, urlopen  # imported here: the command starts faster without it

    request = Request(url, headers={"User-Agent": "freewheel", "Accept-Encoding": "identity"})
    with _network(url, file, partial.parent):
        response = urlopen(request, timeout=timeout_s)
    with response, partial.open("wb") as out, _progress(file, url, quiet) as advance:
        received = 0
        for block in _blocks(response, url, file, partial.parent):
            with _disk(partial.parent):
                out.write(block)
            received += len(block)
            advance(len(block))
            if received > file.size:
                return  # the caller finds it too long; a wrong address must not fill the disk
        with _disk(partial.parent):
            out.flush()
    header = response.headers.get("Content-Length", "")
    promised = int(header) if header.isdecimal() else received
    if received < promised:
        raise DataError(
            f"download of {url} was truncated: {received} of {promised} bytes came; "
            "nothing was kept: try again"
        )


def _blocks(stream: _Stream, url: str, file: DataFile, folder: Path) -> Iterator[bytes]:
    while True:
        with _network(url, file, folder):
            block = stream.read(_BLOCK)
        if not block:
            return
        yield block


@contextmanager
def _network(url: str, file: DataFile, folder: Path) -> Iterator[None]:
    from http.client import HTTPException
    from urllib.error import HTTPError

    remedy = f"put {file.name} into {folder}, or name a folder that holds the set in FREEWHEEL_DATA"
    try:
        yield
    except HTTPError as error:
        error.close()
        message = f"download of {url} failed: HTTP {error.code} {error.reason}; try later, or {remedy}"
        raise DataError(message) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        message = f"download of {url} failed: no answer from the network ({reason}); try later, or {remedy}"
        raise DataError(message) from error


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to the folder {folder} ({error.strerror or error}); make it writable, or name "
            "another one in FREEWHEEL_CACHE"
        ) from error


def _remove_stale(folder: Path, name: str) -> None:
    for part in folder.glob(f"{name}.*.part"):
        with suppress(OSError):  # another process may have removed it first
            if time.time() - part.stat().st_mtime > _STALE_S:
                part.unlink()


@contextmanager
def _progress(file: DataFile, url: str, quiet: bool) -> Iterator[Callable[[int], object]]:
    if quiet:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        console.print(f"downloading {url} ({file.size / 1e6:.1f} MB)", markup=False, soft_wrap=True)
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(file.name, total=file.size)
        yield lambda count: bar.advance(task, count)

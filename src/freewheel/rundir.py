"""The folder of a run: configuration, events, weights and report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from freewheel.errors import ConfigurationError
from freewheel.events import Event, Monitor, RunStarted
from freewheel.job import Result
from freewheel.monitors.recorder import recorder

CONFIG, EVENTS, WEIGHTS, REPORT = "config.json", "events.jsonl", "weights.safetensors", "report.html"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder, for its owner only; meanwhile no other run can write there.

    The system lets go of it when the process ends, however that ends. File systems that cannot lock a folder,
    such as some over a network, do not protect it.

    Raises:
        ConfigurationError: the folder cannot be made, or another run is writing there.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigurationError(
            f"`run_dir` {folder} cannot be made: {error.strerror}; choose another folder"
        ) from error
    try:
        _lock(folder, handle)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, handle: int) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(
            f"`run_dir` {folder} is being written to by a run that still goes on; wait for its end, end it,"
            " or choose another folder"
        ) from error
    except OSError:  # a file system without locks
        return


def begin(
    folder: Path, steps: bool = False, earlier: Sequence[Event] | None = None, same: bool = False
) -> Monitor:
    """The monitor that writes configuration and events into a folder that is there.

    Args:
        folder: of the run.
        steps: write every single step, too.
        earlier: events of a run that goes on; None: the run is new.
        same: it goes on in this folder, whose events are replaced by these when it begins.

    Raises:
        ConfigurationError: the folder cannot be written to, or holds a run already.
    """
    events = folder / EVENTS
    if not same and events.is_file() and events.stat().st_size:
        raise ConfigurationError(
            f"`run_dir` {folder} holds a run already; choose another folder, or remove it;"
            f" resume={str(folder)!r} goes on with it"
        )
    try:
        # Writes, because the access rights alone do not tell: a superuser has them on a read-only file
        # system.
        record = recorder(events, steps, earlier)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"`run_dir` {folder} cannot be written to: {error.__cause__}; choose another folder or change"
            " its mode"
        ) from error

    def monitor(event: Event) -> None:
        if isinstance(event, RunStarted):
            settings = {name: getattr(event, name) for name in event.__slots__ if name != "config"}
            text = json.dumps({**settings, **event.config}, indent=2, default=str)
            (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        record(event)

    return monitor


def finish(folder: Path, result: Result) -> None:
    """Writes the weights and the report."""
    save_weights(result.module, folder / WEIGHTS)
    result.report(folder / REPORT)


def save_weights(module: nn.Module, path: Path) -> None:
    """Writes the module's state dict as safetensors; tied tensors are stored once."""
    from safetensors.torch import save_model

    save_model(module, str(path))

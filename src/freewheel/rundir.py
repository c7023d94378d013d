"""The folder of a run: configuration, events, weights and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from freewheel.errors import ConfigurationError
from freewheel.events import Event, Monitor, RunStarted
from freewheel.job import Result
from freewheel.monitors.recorder import recorder

CONFIG, EVENTS, WEIGHTS, REPORT = "config.json", "events.jsonl", "weights.safetensors", "report.html"


def begin(
    folder: Path, steps: bool = False, earlier: Sequence[Event] | None = None, same: bool = False
) -> Monitor:
    """Makes the folder, for its owner only, and the monitor that writes its configuration and events.

    Args:
        folder: of the run.
        steps: write every single step, too.
        earlier: events of a run that goes on; None: the run is new.
        same: it goes on in this folder, whose events are replaced by these when it begins.

    Raises:
        ConfigurationError: the folder cannot be made or written to, or holds a run already.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"`run_dir` {folder} cannot be made: {error.strerror}; choose another folder"
        ) from error
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

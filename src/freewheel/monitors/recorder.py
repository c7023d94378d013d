"""Writes the events of a run to a file, one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from freewheel.errors import ConfigurationError
from freewheel.events import Event, Monitor, RunStarted, Steps, to_json


def recorder(path: str | Path, steps: bool = False, earlier: Sequence[Event] | None = None) -> Monitor:
    """A monitor that writes every event to a file, from which a report can be made.

    Each event is in the file when the monitor returns, so a run that is killed leaves its record. The file
    is opened for each event and closed again: there are only a few a second, and a handle that is kept open
    would leak from a run that breaks off. `Steps`, of which there may be many, wait for the next event of
    another kind.

    Args:
        path: the file, usually ``events.jsonl`` in the folder of the run; folders are made, and a file that
            is there already is replaced at once, so that a place that cannot be written to is noticed before
            the training begins.
        steps: whether to write `Steps` as well; they take about 40 bytes for each step.
        earlier: events of a run that goes on: the file becomes `RunStarted`, these, and what follows. It is
            left as it is until the run begins.

    Raises:
        ConfigurationError: the file cannot be written, now or later.

    Example:
        >>> import tempfile
        >>> from freewheel.events import RunStarted, read
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record = recorder(Path(folder) / "events.jsonl")
        ...     record(RunStarted("hogwild", "threads", 2, 16, 0, 1000, None, 10, None))
        ...     [type(event).__name__ for event in read(Path(folder) / "events.jsonl")]
        ['RunStarted']
    """
    path = Path(path)
    waiting: list[str] = []
    _write(path, "", "w" if earlier is None else "a")

    def record(event: Event) -> None:
        if isinstance(event, RunStarted) and earlier is not None:
            _replace(path, [event, *earlier])
            return
        if isinstance(event, Steps):
            if steps:
                waiting.append(to_json(event))
            return
        lines = "".join(f"{line}\n" for line in (*waiting, to_json(event)))
        waiting.clear()
        _write(path, lines, "a")

    return record


def _replace(path: Path, events: Sequence[Event]) -> None:
    """Writes a file beside and renames it: a crash leaves the old or the new one."""
    beside = path.with_name(path.name + ".new")
    _write(beside, "".join(f"{to_json(event)}\n" for event in events), "w")
    beside.replace(path)


def _write(path: Path, text: str, mode: Literal["a", "w"]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "choose another `path`, or make room and allow writing there"
        raise ConfigurationError(f"cannot record events in {path}: {reason}; {remedy}") from error

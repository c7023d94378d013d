"""``audit``: does the record of a run add up?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from freewheel.auditing import of_events, of_recording
from freewheel.auditing.of_events import Log
from freewheel.errors import ConfigurationError, DataError
from freewheel.events import NOT_PUSHED, Event, Steps
from freewheel.recording.log import HEADER, Kind, Recording
from freewheel.report import Run

REMEDY = (
    "record them with fit(..., record=True, run_dir=...), with freewheel train --record, or with"
    " monitors=[freewheel.monitors.recorder(path, steps=True)]"
)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        steps: batches that were computed.
        samples: examples in them.
        unpushed: steps without a push of their own: their gradients stayed on the worker, for a later push or
            for its own weights, or were lost with their message or worker.
        pushed: updates that reached the server; applied + absorbed + pending + dropped.
        applied: updates that went into the weights.
        absorbed: updates that went into an aggregate.
        pending: updates that waited in a buffer or a round when the run ended.
        dropped: updates that were dropped, by reason.
        duplicates: pushes that came again, and were not counted.
        checked: what was looked at: "events", "recording".
        violations: what does not add up, in plain words; empty if all is well.
    """

    steps: int
    samples: int
    unpushed: int | None
    pushed: int
    applied: int
    absorbed: int
    pending: int
    dropped: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    checked: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Everything adds up."""
        return not self.violations


def audit(run: str | Path | Recording | Iterable[Event]) -> Audit:
    """Checks that every batch was computed once, and that every update is accounted for.

    Every update must have been applied once, absorbed into an aggregate, dropped for a reason, or be pending
    when the run ended. Looks at the events of a run with its single steps, at its recording, or at both where
    a folder has both.

    Args:
        run: the folder of a run, a recording, or events.

    Returns:
        Counts, and what does not add up.

    Raises:
        DataError: there is no run, it is damaged, or its single steps were not recorded.
        ConfigurationError: something that is none of these.

    Example:
        >>> import torch, freewheel
        >>> x = torch.randn(64, 8); y = (x.sum(1) > 0).long()
        >>> events = []
        >>> result = freewheel.fit(torch.nn.Linear(8, 2), (x, y), loss=torch.nn.CrossEntropyLoss(), workers=2,
        ...                        monitors=[events.append])
        >>> found = freewheel.audit(events)
        >>> found.ok, found.steps, found.applied
        (True, 4, 4)
    """
    if isinstance(run, Recording):
        return _audited(None, run)
    if isinstance(run, str | Path):
        folder = Path(run)
        recording = Recording.load(folder) if (folder / HEADER).is_file() else None
        return _audited(_with_steps(Run.from_directory(folder).events, str(folder)), recording)
    if not isinstance(run, Iterable):
        raise ConfigurationError(f"`run` must be a folder, a Recording or events, got {run!r}")
    return _audited(_with_steps(tuple(run), "`run`"), None)


def _with_steps(events: Iterable[Event], where: str) -> Log:
    log = Log(tuple(events))
    told = log.finished.steps if log.finished is not None else 1
    if told and not any(isinstance(event, Steps) for event in log.events):
        raise DataError(f"{where} has no single steps, which an audit needs; {REMEDY}")
    return log


def _audited(log: Log | None, recording: Recording | None) -> Audit:
    found: list[str] = []
    if log is not None:
        found += of_events.violations(log)
    if recording is not None:
        found += of_recording.violations(recording, log.steps if log is not None else None)
    checked = [name for name, part in (("events", log), ("recording", recording)) if part is not None]
    ledger = _ledger(log, recording)
    return Audit(
        *_counts(log, recording),
        **{name: ledger.get(name, 0) for name in ("pushed", "applied", "absorbed", "pending", "duplicates")},
        dropped=dict(ledger.get("dropped", {})),
        checked=tuple(checked),
        violations=tuple(dict.fromkeys(found)),
    )


def _counts(log: Log | None, recording: Recording | None) -> tuple[int, int, int | None]:
    """Steps, examples, and steps without a push."""
    if log is not None:
        steps = log.steps
        unpushed = sum(step.staleness == NOT_PUSHED for step in steps)
        return len(steps), sum(step.samples for step in steps), unpushed
    assert recording is not None
    begun = [operation.samples for operation in recording if operation.kind == Kind.STEP]
    return len(begun), sum(begun), None


def _ledger(log: Log | None, recording: Recording | None) -> dict[str, Any]:
    if log is not None and log.finished is not None:
        return log.finished.ledger
    finished = recording.header["finished"] if recording is not None else None
    return finished["ledger"] if finished is not None else {}

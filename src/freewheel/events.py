"""What happens in a run, as data: the event types, and how they are written to a file and read back.

Engines emit events, monitors receive them: a monitor is any callable that takes one event, so
``monitors=[print]`` is the smallest of them. Events are emitted by one thread, in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from freewheel.metrics import Target

NOT_PUSHED = -1
"""The staleness of a step whose gradient was kept on the worker."""


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The run begins; everything that is known beforehand."""

    method: str
    engine: str
    workers: int
    batch_size: int
    seed: int
    planned_samples: int | None  # None: until max_seconds or the target
    max_seconds: float | None
    trainable: int  # number of trainable weights
    target: Target | None
    config: dict[str, Any] = field(default_factory=dict)  # JSON values: settings, versions, machine


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on from a checkpoint; comes right after `RunStarted`."""

    checkpoint: str  # its folder
    seconds: float  # training clock of the checkpoint
    samples: list[int]  # per worker, until then
    steps: int


@dataclass(frozen=True, slots=True)
class Steps:
    """A batch of finished worker steps, as columns of equal length, in the order they were collected."""

    worker: list[int]
    sequence: list[int]  # per worker, from 0
    lease: list[int]
    samples: list[int]
    loss: list[float]
    staleness: list[int]  # updates that were applied between this worker's pull and its push; or NOT_PUSHED
    seconds: list[float]  # training clock at the end of the step


@dataclass(frozen=True, slots=True)
class Tick:
    """How the run stands, a few times a second."""

    seconds: float  # training clock: evaluation does not count
    samples: list[int]  # per worker, since the start
    loss: float  # mean over the steps since the last tick; NaN if there were none
    staleness: float  # mean over the steps since the last tick; NaN if there were none
    rss_bytes: int  # resident memory of this process, and of worker processes
    cpu_seconds: float  # user + system time of these since the start of the run


@dataclass(frozen=True, slots=True)
class Evaluating:
    """An evaluation begins: until `Evaluated`, every worker stands still, and so does the training clock."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The model was evaluated while every worker stood still."""

    seconds: float  # training clock
    samples: int
    epoch: float
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Updates of one worker were not applied."""

    worker: int
    reason: str
    count: int  # since the start of the run


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """A checkpoint is complete on the disk."""

    folder: str
    seconds: float  # training clock when the state was copied
    steps: int
    bytes: int
    write_seconds: float  # how long writing took, beside the training


@dataclass(frozen=True, slots=True)
class CheckpointFailed:
    """A checkpoint could not be written; the run goes on, and earlier checkpoints are as they were."""

    seconds: float  # training clock when the state was copied
    steps: int
    error: str


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """A worker raised an error, its process died, or it hangs."""

    worker: int
    sequence: int
    error: str
    replaced: bool = False  # another takes its place; else the run ends


@dataclass(frozen=True, slots=True)
class WorkerRestarted:
    """A worker that had failed is there again, and goes on."""

    worker: int
    incarnation: int  # which life it is; the first was 0
    seconds: float  # training clock


@dataclass(frozen=True, slots=True)
class WorkerSlowed:
    """A worker has been much slower than the others for seconds, or is so no more."""

    worker: int
    times: float  # time that its steps compute, over the median of the others'
    slow: bool  # False: it keeps up again
    seconds: float  # training clock


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """The run goes on with another number of workers."""

    before: int
    after: int
    seconds: float  # training clock, which stood still meanwhile
    took_s: float  # from the last step with the old number until the new workers could begin


@dataclass(frozen=True, slots=True)
class WorkersKept:
    """Somebody wants another number of workers, which this run cannot have."""

    workers: int
    wanted: int
    reason: str
    seconds: float  # training clock


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who was busy and what crossed the network in a simulated run; comes once, before `RunFinished`.

    Seconds are of the virtual clock, summed over the run.
    """

    worker_bytes_sent: list[int]
    worker_bytes_received: list[int]
    worker_busy_s: list[float]  # computing; the rest of the time the worker waited
    shard_bytes: list[int]  # pushed to it and pulled from it
    shard_busy_s: list[float]
    shard_wait_s: list[float]  # in its queue, summed over pushes and pulls
    link_busy_s: list[float]  # of the links that all workers share: towards the servers, and away from them
    faults: dict[str, int] = field(default_factory=dict)  # how often each kind of fault happened


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run is over; the totals."""

    reason: str  # "epochs", "max_samples", "max_seconds", "target", "interrupted" or "error"
    seconds: float  # training clock
    wall_seconds: float  # with evaluation
    cpu_seconds: float  # user + system time while the training clock ran
    samples: int
    steps: int
    worker_samples: list[int]
    worker_steps: list[int]
    staleness: dict[int, int]  # staleness -> number of updates
    ledger: dict[str, Any]  # pushed, applied, absorbed, pending, dropped by reason
    peak_rss_bytes: int
    start_rss_bytes: int
    metrics: dict[str, float]
    target_seconds: float | None  # training clock when the target first held (and held once more)


Event = (
    RunStarted
    | Resumed
    | Steps
    | Tick
    | Evaluating
    | Evaluated
    | Dropped
    | CheckpointWritten
    | CheckpointFailed
    | WorkerFailed
    | WorkerRestarted
    | WorkerSlowed
    | WorkersChanged
    | WorkersKept
    | Traffic
    | RunFinished
)
Monitor = Callable[[Event], None]

_TYPES: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}


def to_json(event: Event) -> str:
    """One line of JSON, without a newline; ``NaN`` is written as JavaScript and Python read it."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> Event:
    """The event that :func:`to_json` wrote.

    Raises:
        ValueError: the line is not JSON or names no event type.
    """
    values = json.loads(line)
    name = values.pop("event", None)
    if name not in _TYPES:
        raise ValueError(f"unknown event {name!r}; known are {', '.join(_TYPES)}")
    if "staleness" in values and isinstance(values["staleness"], dict):
        values["staleness"] = {int(key): count for key, count in values["staleness"].items()}
    if values.get("target") is not None:
        values["target"] = tuple(values["target"])
    event: Event = _TYPES[name](**values)
    return event


def read(path: str | Path) -> Iterator[Event]:
    """The events of a file, one JSON object a line; a torn last line, as a crash leaves it, is ignored."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        try:
            yield from_json(line)
        except (ValueError, TypeError) as error:
            if number == len(lines) - 1:
                return
            raise ValueError(f"{path}, line {number + 1}: {error}") from error


def emit(event: Event, monitors: Iterable[Monitor]) -> None:
    """Hands the event to every monitor, in order."""
    for monitor in monitors:
        monitor(event)

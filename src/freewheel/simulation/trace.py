"""Computing times out of a recorded run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from freewheel.errors import DataError
from freewheel.events import Event, Steps, read
from freewheel.simulation.fleet import PerWorker
from freewheel.simulation.times import Measured

_FILE = "events.jsonl"


def from_trace(trace: str | Path | Iterable[Event]) -> PerWorker:
    """The times of steps that were measured, worker by worker.

    A step's time is the difference between the ends of two consecutive steps of its worker, so it holds
    everything between them: computing, pulling, pushing, and waiting for others. A trace to simulate other
    methods from should therefore be of a free method (``hogwild``) on no more workers than there are cores.

    Args:
        trace: ``events.jsonl`` or its folder, recorded by ``recorder(path, steps=True)``; or the events.

    Returns:
        A model that draws each worker's steps from its own samples; workers that the trace does not have,
        or has one step of, draw from those of all.

    Raises:
        DataError: there is no such file, it is damaged, or it has no two steps of one worker.

    Example:
        >>> worker, sequence, ends = [0, 0, 1, 0], [0, 1, 0, 2], [1.0, 3.0, 4.0, 5.5]
        >>> steps = Steps(worker, sequence, [0, 1, 2, 3], [8] * 4, [1.0] * 4, [0] * 4, ends)
        >>> from_trace([steps]).models
        ((0, Measured(samples=(2.0, 2.5), in_order=False)),)
    """
    events = _events(Path(trace)) if isinstance(trace, str | Path) else trace
    samples = _step_seconds(events)
    pooled = [seconds for own in samples.values() for seconds in own]
    if not pooled:
        raise DataError(
            "the trace has no two consecutive steps of one worker; record a run with"
            " monitors=[recorder('events.jsonl', steps=True)], which writes `Steps` events"
        )
    models = tuple((worker, Measured(tuple(own))) for worker, own in sorted(samples.items()))
    return PerWorker(models, Measured(tuple(pooled)))


def _step_seconds(events: Iterable[Event]) -> dict[int, list[float]]:
    """For each worker the differences between the ends of its consecutive steps."""
    last: dict[int, tuple[int, float]] = {}
    found: dict[int, list[float]] = defaultdict(list)
    for event in events:
        if not isinstance(event, Steps):
            continue
        for worker, sequence, seconds in zip(event.worker, event.sequence, event.seconds, strict=True):
            before, since = last.get(worker, (-2, 0.0))
            if sequence == before + 1 and seconds > since:
                found[worker].append(seconds - since)
            last[worker] = (sequence, seconds)
    return dict(found)


def _events(path: Path) -> Iterable[Event]:
    file = path / _FILE if path.is_dir() else path
    try:
        yield from read(file)
    except OSError as error:
        raise DataError(
            f"cannot read the trace {file}: {error.strerror or error}; give a recorded run's {_FILE}"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"the trace {file} is damaged, or no record of a run: {error}") from error

"""What a report is made from: a run is a label and its events, a summary is the numbers of its repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from freewheel.errors import DataError
from freewheel.events import Evaluated, Event, RunFinished, RunStarted, Tick, Traffic, WorkersChanged, read
from freewheel.metrics import Target

EVENTS_FILE = "events.jsonl"
UNFINISHED = "unfinished"  # the reason of a run whose record ends without RunFinished
TRAINING_LOSS = "training loss"
_BROKEN_OFF = ("error", "interrupted", UNFINISHED)


@dataclass(frozen=True)
class Run:
    """One recorded run.

    Args:
        label: its name in the report; runs of the same label are repeats.
        events: what was emitted, in order; ``Steps`` are not needed.

    Raises:
        DataError: there is no ``RunStarted`` among the events.

    Example:
        >>> from freewheel.events import RunStarted
        >>> run = Run("mine", (RunStarted("hogwild", "threads", 2, 16, 0, 1000, None, 10, None),))
        >>> run.finished.reason, run.complete
        ('unfinished', False)
    """

    label: str
    events: Sequence[Event]

    def __post_init__(self) -> None:
        if not any(isinstance(event, RunStarted) for event in self.events):
            raise DataError(
                f"run {self.label!r} has no RunStarted event among its {len(self.events)}; "
                "record it with freewheel.monitors.recorder() from its start"
            )

    @classmethod
    def from_directory(cls, path: str | Path, label: str | None = None) -> Run:
        """The run that was recorded in a run directory.

        A torn last line, as a crash leaves it, is left out; whatever else is wrong is an error.

        Args:
            path: a directory with ``events.jsonl``, or that file itself.
            label: its name in the report; the method's name if left out.

        Raises:
            DataError: nothing is there, or it is no record of a run, or it is damaged.
        """
        given = Path(path)
        file = given / EVENTS_FILE if given.is_dir() else given
        if not file.is_file():
            raise DataError(
                f"no run was recorded in {given}: there is no {EVENTS_FILE}; give a run directory"
            )
        try:
            events = tuple(read(file))
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{file} is damaged, or no record of a freewheel run: {error}") from error
        except OSError as error:
            raise DataError(f"cannot read {file}: {error.strerror or error}") from error
        if not events or not isinstance(events[0], RunStarted):
            raise DataError(
                f"{file} does not begin with RunStarted: it is empty or no record of a freewheel run"
            )
        return cls(label if label is not None else events[0].method, events)

    @cached_property
    def started(self) -> RunStarted:
        """How the run began."""
        return next(event for event in self.events if isinstance(event, RunStarted))

    @cached_property
    def ticks(self) -> tuple[Tick, ...]:
        """How the run stood, a few times a second."""
        return tuple(event for event in self.events if isinstance(event, Tick))

    @cached_property
    def evaluations(self) -> tuple[Evaluated, ...]:
        """Every evaluation."""
        return tuple(event for event in self.events if isinstance(event, Evaluated))

    @cached_property
    def finished(self) -> RunFinished:
        """The totals; put together from what is known where the record ends early."""
        for event in reversed(self.events):
            if isinstance(event, RunFinished):
                return event
        return _unfinished(self)

    @cached_property
    def traffic(self) -> Traffic | None:
        """Who was busy and what crossed the network; None unless it was simulated to its end."""
        return next((event for event in reversed(self.events) if isinstance(event, Traffic)), None)

    @cached_property
    def changes(self) -> tuple[WorkersChanged, ...]:
        """When it went on with another number of workers."""
        found = (event for event in self.events if isinstance(event, WorkersChanged))
        return tuple(change for change in found if change.before != change.after)

    @property
    def simulated(self) -> bool:
        """Whether its times are predicted, not measured."""
        return self.started.engine == "simulated"

    @property
    def complete(self) -> bool:
        """Whether the run came to its planned end."""
        return self.finished.reason not in _BROKEN_OFF

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The final metrics, or those of the last evaluation."""
        last = self.evaluations[-1].metrics if self.evaluations else {}
        return {**last, **self.finished.metrics}

    @property
    def samples_per_second(self) -> float:
        """Samples per second of the training clock; NaN when nothing was trained."""
        done = self.finished
        return done.samples / done.seconds if done.seconds > 0 else math.nan

    @cached_property
    def mean_staleness(self) -> float:
        """Mean staleness over all updates; NaN when there were none."""
        total = sum(self.finished.staleness.values())
        if total:
            return sum(value * number for value, number in self.finished.staleness.items()) / total
        known = [tick.staleness for tick in self.ticks if math.isfinite(tick.staleness)]
        return statistics.fmean(known) if known else math.nan


def _unfinished(run: Run) -> RunFinished:
    tick = run.ticks[-1] if run.ticks else None
    last = run.evaluations[-1] if run.evaluations else None
    seconds = max(tick.seconds if tick else 0.0, last.seconds if last else 0.0)
    return RunFinished(
        reason=UNFINISHED,
        seconds=seconds,
        wall_seconds=math.nan,
        cpu_seconds=tick.cpu_seconds if tick else math.nan,
        samples=max(sum(tick.samples) if tick else 0, last.samples if last else 0),
        steps=0,
        worker_samples=list(tick.samples) if tick else [],
        worker_steps=[],
        staleness={},
        ledger={},
        peak_rss_bytes=max((one.rss_bytes for one in run.ticks), default=0),
        start_rss_bytes=run.ticks[0].rss_bytes if run.ticks else 0,
        metrics=dict(last.metrics) if last else {},
        target_seconds=None,
    )


@dataclass(frozen=True)
class Repeat:
    """The numbers of one run that a comparison is made of; NaN where unknown."""

    seed: int
    seconds: float = math.nan  # training clock
    samples_per_second: float = math.nan
    metric: float = math.nan
    target_seconds: float | None = None
    cpu_seconds: float = math.nan
    peak_bytes: float = math.nan
    complete: bool = True


@dataclass(frozen=True)
class Summary:
    """All repeats of one label."""

    label: str
    method: str
    metric: str  # the name of the metric in `repeats`
    repeats: tuple[Repeat, ...]
    target: Target | None = None

    @property
    def synchronous(self) -> bool:
        """Whether this is a baseline."""
        return self.method.startswith("synchronous")

    @property
    def complete(self) -> tuple[Repeat, ...]:
        """The repeats that came to their planned end."""
        return tuple(repeat for repeat in self.repeats if repeat.complete)


def main_metric(runs: Iterable[Run]) -> str:
    """The metric to show first: accuracy, or what the target names, or a loss."""
    runs = list(runs)
    known = {name for run in runs for name in run.metrics}
    known |= {name for run in runs for evaluation in run.evaluations for name in evaluation.metrics}
    wanted = ["accuracy", *(run.started.target[0] for run in runs if run.started.target), "loss"]
    return next((name for name in wanted if name in known), min(known, default=TRAINING_LOSS))


def final_metric(run: Run, metric: str) -> float:
    """The last value of a metric; NaN if the run never measured it."""
    if metric != TRAINING_LOSS:
        return run.metrics.get(metric, math.nan)
    return next((tick.loss for tick in reversed(run.ticks) if math.isfinite(tick.loss)), math.nan)


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs by label, in order of first appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def summarize(runs: Sequence[Run]) -> list[Summary]:
    """One summary for each label, in order of first appearance."""
    metric = main_metric(runs)
    return [
        Summary(
            label=label,
            method=repeats[0].started.method,
            metric=metric,
            repeats=tuple(_repeat(run, metric) for run in repeats),
            target=repeats[0].started.target,
        )
        for label, repeats in grouped(runs).items()
    ]


def _repeat(run: Run, metric: str) -> Repeat:
    return Repeat(
        seed=run.started.seed,
        seconds=run.finished.seconds,
        samples_per_second=run.samples_per_second,
        metric=final_metric(run, metric),
        target_seconds=run.finished.target_seconds,
        # What the simulation itself took says nothing of the run that it predicts.
        cpu_seconds=math.nan if run.simulated else run.finished.cpu_seconds,
        peak_bytes=math.nan if run.simulated else float(run.finished.peak_rss_bytes),
        complete=run.complete,
    )

"""What advice says: predictions of several methods, the choice among them, and why, in words."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from freewheel.calibration import Calibration
from freewheel.events import Evaluated
from freewheel.methods import Method
from freewheel.metrics import Target, smaller_is_better

if TYPE_CHECKING:
    from rich.table import Table

    from freewheel.report import Run

MARGIN = 1.15  # predictions are good to some 15 %: a smaller gain is none
NEAR = 0.05  # a method whose metric ends further than this from one worker's does not learn well enough


@dataclass(frozen=True)
class Prediction:
    """One method, as it was simulated.

    Attributes:
        label: its name.
        method: what to give to :func:`freewheel.fit`.
        workers: how many.
        run: its events.
    """

    label: str
    method: Method = field(repr=False)
    workers: int
    run: Run = field(repr=False)

    @property
    def samples_per_second(self) -> float:
        """Examples per second of predicted time."""
        return self.run.samples_per_second

    @property
    def seconds(self) -> float:
        """Predicted time of the whole budget."""
        return self.run.finished.seconds

    @property
    def diverged(self) -> bool:
        """Whether training broke off."""
        return not self.run.complete

    @property
    def computing(self) -> float:
        """The share of the time that a typical worker computes; NaN if it is unknown."""
        event = self.run.traffic
        if event is None or not self.seconds:
            return math.nan
        return min(median(event.worker_busy_s) / self.seconds, 1.0)

    def final(self, metric: str) -> float:
        """The metric at the end of the budget; NaN if it diverged."""
        return math.nan if self.diverged else self.run.metrics.get(metric, math.nan)

    def seconds_to(self, metric: str, level: float, smaller: bool) -> float | None:
        """Predicted time until the metric is this good, between evaluations by a straight line.

        Args:
            metric: its name.
            level: what to reach.
            smaller: whether smaller is better.
        """
        return None if self.diverged else crossing(self.run.evaluations, metric, level, smaller)


def crossing(history: Sequence[Evaluated], metric: str, level: float, smaller: bool) -> float | None:
    """When a metric is as good as a level for the first time; None: never.

    Example:
        >>> history = [Evaluated(t, 0, 0.0, {"accuracy": a}) for t, a in ((1.0, 0.5), (2.0, 0.7))]
        >>> round(crossing(history, "accuracy", 0.6, False), 6), crossing(history, "accuracy", 0.8, False)
        (1.5, None)
    """
    before: tuple[float, float] | None = None
    for one in history:
        value = one.metrics.get(metric, math.nan)
        if value <= level if smaller else value >= level:
            if before is None or value == before[1]:
                return one.seconds
            share = (level - before[1]) / (value - before[1])
            return before[0] + share * (one.seconds - before[0])
        if math.isfinite(value):
            before = one.seconds, value
    return None


@dataclass(frozen=True)
class Advice:
    """What :func:`freewheel.advise` found; ``print(advice)`` reads well.

    Attributes:
        predictions: one for each method; the first is one worker.
        calibration: what was measured.
        metric: by which they are compared.
        level: the value of it to reach: the target, or what all that learn well reach in the budget.
        target: the user's; None if there is none, or nobody reached it in the budget.
        where: machines and network, in words.
    """

    predictions: tuple[Prediction, ...]
    calibration: Calibration = field(repr=False)
    metric: str
    level: float
    target: Target | None
    where: str

    @property
    def best(self) -> Prediction:
        """The method to use: an asynchronous one only if it is faster by more than predictions err."""
        rounds, free = self.fastest(rounds=True), self.fastest(rounds=False)
        if free is None or rounds is None:
            return free or rounds or self.predictions[0]
        slow, fast = self.time(rounds), self.time(free)
        assert slow is not None
        assert fast is not None
        return free if slow > MARGIN * fast else rounds

    def time(self, prediction: Prediction) -> float | None:
        """Predicted seconds until the level is reached; None: not in this budget."""
        if self.target is not None:
            return prediction.run.finished.target_seconds
        return prediction.seconds_to(self.metric, self.level, smaller_is_better(self.metric))

    def fastest(self, rounds: bool) -> Prediction | None:
        """Of the synchronous methods (or of the asynchronous) that which is first at the level.

        Args:
            rounds: whether workers wait for each other in rounds; one worker alone counts as that.
        """
        timed = [
            (seconds, index)
            for index, one in enumerate(self.predictions)
            if (one.method.rounds or one.workers == 1) == rounds and (seconds := self.time(one)) is not None
        ]
        return self.predictions[min(timed)[1]] if timed else None

    @property
    def words(self) -> list[str]:
        """The advice in sentences; the first says what to use."""
        from freewheel.advice_words import sentences

        return sentences(self)

    def table(self) -> Table:
        """The predictions as a table for ``rich``."""
        from freewheel.advice_words import table

        return table(self)

    def report(self, path: str | Path, png: bool = False) -> Path:
        """Writes a self-contained HTML report that compares the simulated runs.

        Args:
            path: of the HTML file.
            png: write each plot as a PNG file beside it, too.

        Returns:
            The path of the HTML file.
        """
        from freewheel.report import write

        return write([one.run for one in self.predictions], path, png=png)

    def __str__(self) -> str:
        """The table and the advice."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=110).print(self.table())
        return text.getvalue() + "\n".join(self.words)


def common_level(predictions: Sequence[Prediction], metric: str) -> float:
    """The worst final value among those that end near one worker's (the first), or better; NaN if none does.

    At this level all that learn can be compared, though they were given the same number of examples.
    """
    smaller = smaller_is_better(metric)
    finals = [one.final(metric) for one in predictions]
    base = finals[0] if math.isfinite(finals[0]) else math.nan
    slack = base + NEAR * abs(base) * (1 if smaller else -1)
    near = [value for value in finals if (value <= slack if smaller else value >= slack)]
    return (max if smaller else min)(near, default=math.nan)

"""What comes of a comparison: runs, their summary, table, verdict and report."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table

    from freewheel.report import Run, Summary


class Spread(NamedTuple):
    """The median and the range of a number over the repeats of a contestant; NaN where it is unknown."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One contestant, over its repeats that came to their end.

    Attributes:
        label: its name.
        method: the name of its method.
        runs: how many came to their end.
        metric: the name of the metric in ``value``.
        value: of the metric at the end.
        seconds: of training; evaluation does not count.
        samples_per_second: examples per second of training.
        cpu_seconds: processor time while training.
        peak_bytes: highest resident memory of the process.
        target_seconds: until the target was reached, over the runs that reached it.
        reached: how many runs reached the target.
    """

    label: str
    method: str
    runs: int
    metric: str
    value: Spread
    seconds: Spread
    samples_per_second: Spread
    cpu_seconds: Spread
    peak_bytes: Spread
    target_seconds: Spread
    reached: int


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        runs: one for each contestant and seed, in the order in which they ran.
        baseline: label of the contestant that the others are judged by; None is the fastest synchronous one.
        interrupted: it ended early, by Ctrl-C or because a run failed; ``runs`` are those that had come to
            their end.
    """

    runs: tuple[Run, ...] = field(repr=False)
    baseline: str | None = None
    interrupted: bool = False

    def summary(self) -> list[Row]:
        """One row for each contestant, in their order of first appearance."""
        return [_row(one) for one in self._summaries()]

    @property
    def verdict(self) -> list[str]:
        """Which won and by how much, or that asynchrony did not pay; the first sentence is the headline."""
        from freewheel.report import verdict

        return verdict(self._summaries(), self.baseline)

    def table(self) -> Table:
        """The summary as a table for ``rich``: medians, below them the range over the repeats."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("Method\n[dim]runs[/dim]", no_wrap=True)
        rows = self.summary()
        columns = [
            column for column in _COLUMNS if column.field != "target_seconds" or _has_target(self.runs)
        ]
        for column in columns:
            table.add_column(column.head or f"Final\n{rows[0].metric.replace('_', ' ')}", justify="right")
        for row in rows:
            runs = f"{row.runs} run" if row.runs == 1 else f"{row.runs} runs"
            cells = [_cell(getattr(row, column.field), column) for column in columns]
            table.add_row(f"{row.label}\n[dim]{runs}[/dim]", *cells)
        return table

    def report(self, path: str | Path, png: bool = False) -> Path:
        """Writes a self-contained HTML report with plots.

        Args:
            path: of the HTML file.
            png: write each plot as a PNG file beside it, too.

        Returns:
            The path of the HTML file.
        """
        from freewheel.report import write

        return write(self.runs, path, png=png, baseline=self.baseline)

    def __str__(self) -> str:
        """The table and the verdict."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=120).print(self.table())
        return text.getvalue() + "\n".join(self.verdict)

    def _summaries(self) -> list[Summary]:
        from freewheel.report import summarize

        return summarize(self.runs)


class _Column(NamedTuple):
    """A column of the table: a field of Row in a unit."""

    field: str
    head: str
    format: str
    unit: float = 1.0


_COLUMNS = (
    _Column("value", "", ".4f"),
    _Column("target_seconds", "Seconds\nto target", ",.1f"),
    _Column("seconds", "Training\nseconds", ",.1f"),
    _Column("samples_per_second", "Samples\nper second", ",.0f"),
    _Column("cpu_seconds", "CPU\nseconds", ",.1f"),
    _Column("peak_bytes", "Peak\nMiB", ",.0f", 2.0**20),
)


def _cell(spread: Spread, column: _Column) -> str:
    if math.isnan(spread.median):
        return "n/a"
    median, low, high = (format(value / column.unit, column.format) for value in spread)
    return median if low == high else f"{median}\n[dim]{low}-{high}[/dim]"


def _has_target(runs: Iterable[Run]) -> bool:
    return any(run.started.target is not None for run in runs)


def _row(summary: Summary) -> Row:
    done = summary.complete
    reached = [run.target_seconds for run in done if run.target_seconds is not None]
    return Row(
        label=summary.label,
        method=summary.method,
        runs=len(done),
        metric=summary.metric,
        value=_spread(run.metric for run in done),
        seconds=_spread(run.seconds for run in done),
        samples_per_second=_spread(run.samples_per_second for run in done),
        cpu_seconds=_spread(run.cpu_seconds for run in done),
        peak_bytes=_spread(run.peak_bytes for run in done),
        target_seconds=_spread(reached),
        reached=len(reached),
    )


def _spread(values: Iterable[float]) -> Spread:
    known = [value for value in values if math.isfinite(value)]
    return Spread(statistics.median(known), min(known), max(known)) if known else Spread(*[math.nan] * 3)

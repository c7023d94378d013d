"""The plots of a report, as Matplotlib figures.

Only ``matplotlib.figure.Figure`` and its artists are used, never pyplot: no global state, and any thread may.
Importing this module imports Matplotlib; the package does so only when a report is written.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, ScalarFormatter

from freewheel.report.runs import TRAINING_LOSS, Run, final_metric, grouped, main_metric

# The colours of the light page; there each becomes a CSS variable (svg.py), so that dark mode works.
SURFACE, INK, MUTED, GRID = "#ffffff", "#16202b", "#5a6675", "#dce2e9"
# Okabe and Ito's hues, darkened to at least 4.5:1 on white; line styles and markers tell them apart as well.
SERIES = ("#0067a8", "#b84a00", "#007a5a", "#9b3f7d", "#7a5c00", "#2f7fb5", "#5e4fa2", "#4f565e")
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
)
MARKERS = "osD^vPX*"

WIDTH, HEIGHT = 420.0, 262.0  # points; read on a phone at about 0.8 of this size
LEFT, RIGHT, BOTTOM, TITLE, ROW = (
    46.0,
    12.0,
    40.0,
    34.0,
    17.0,
)  # margins and the height of a legend row, in points
TEXT, SMALL = 11.5, 10.5
MOST_LINES = 8  # more workers than this become a band
MOST_POINTS = 240  # of a curve over time; more is only weight in the file
LABEL_LENGTH = 28

Points = list[tuple[float, float]]


class Style(NamedTuple):
    """How one label is drawn."""

    color: str
    dash: str | tuple[int, tuple[float, ...]]
    marker: str


def style(index: int) -> Style:
    """The style of the index-th label."""
    return Style(SERIES[index % len(SERIES)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])


def short(label: str) -> str:
    """A label that fits a legend; Matplotlib would hide one that begins with an underscore."""
    label = " ".join(label.split()) or "(no name)"
    label = label if len(label) <= LABEL_LENGTH else label[: LABEL_LENGTH - 1] + "…"
    return f" {label}" if label.startswith("_") else label


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """The plots that these runs have data for, by name, in the order of the report."""
    metric = main_metric(runs)
    made: dict[str, Figure | None] = {
        "metric_by_seconds": metric_curve(runs, metric, by="seconds"),
        "metric_by_samples": metric_curve(runs, metric, by="samples"),
    }
    if len(runs) == 1:
        made["training_loss"] = (
            metric_curve(runs, TRAINING_LOSS, by="seconds") if metric != TRAINING_LOSS else None
        )
        made["throughput"] = worker_throughput(runs[0])
    else:
        made["repeats"] = repeats(runs)
        made["throughput"] = throughput(runs)
    made["staleness"] = staleness(runs)
    made["memory"] = memory(runs)
    return {name: figure for name, figure in made.items() if figure is not None}


def curve(run: Run, metric: str, by: str) -> Points:
    """A metric over the training clock or over samples; values that are not finite are left out."""
    if metric == TRAINING_LOSS:
        points = [
            (tick.seconds if by == "seconds" else float(sum(tick.samples)), tick.loss) for tick in run.ticks
        ]
    else:
        points = [
            (one.seconds if by == "seconds" else float(one.samples), one.metrics.get(metric, math.nan))
            for one in run.evaluations
        ]
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def clock(runs: Iterable[Run]) -> str:
    """What an axis of the training clock is called: a simulated run predicts its time."""
    simulated = {run.simulated for run in runs}
    if len(simulated) > 1:
        return "seconds, trained or predicted"
    return "predicted seconds" if simulated == {True} else "training seconds"


def metric_curve(runs: Sequence[Run], metric: str, by: str) -> Figure | None:
    """The metric of every run over seconds or samples."""
    groups = {label: [curve(run, metric, by) for run in group] for label, group in grouped(runs).items()}
    axis = clock(runs) if by == "seconds" else "samples"
    goals = {run.started.target[1] for run in runs if run.started.target and run.started.target[0] == metric}
    title = f"{metric[:1].upper()}{metric[1:]} against {axis}"
    target = next(iter(goals)) if len(goals) == 1 else None
    return _lines(groups, title, axis, dots=metric != TRAINING_LOSS, target=target)


def rates(seconds: Sequence[float], samples: Sequence[float]) -> Points:
    """Samples per second in windows of about a sixtieth of the run, placed at the middle of each window."""
    if len(seconds) < 2 or seconds[-1] <= 0:
        return []
    shortest = max(seconds[-1] / 60, 0.5)
    points: Points = []
    begin = 0
    for end in range(1, len(seconds)):
        width = seconds[end] - seconds[begin]
        if width > 0 and (width >= shortest or (end == len(seconds) - 1 and not points)):
            rate = (samples[end] - samples[begin]) / width
            points.append(((seconds[begin] + seconds[end]) / 2, max(rate, 0.0)))
            begin = end
    return points


def worker_rates(run: Run) -> list[Points]:
    """For each worker its samples per second over time."""
    seconds = [0.0, *(tick.seconds for tick in run.ticks)]
    workers = max((len(tick.samples) for tick in run.ticks), default=0)
    counts = [[tick.samples[w] if w < len(tick.samples) else 0 for tick in run.ticks] for w in range(workers)]
    return [rates(seconds, [0, *count]) for count in counts]


def total_rate(run: Run) -> Points:
    """Samples per second of all workers together over time."""
    return rates(
        [0.0, *(tick.seconds for tick in run.ticks)], [0, *(sum(tick.samples) for tick in run.ticks)]
    )


def worker_throughput(run: Run) -> Figure | None:
    """Throughput over time: a line for each worker, or the range when there are many."""
    curves = [points for points in worker_rates(run) if points]
    title = "Throughput by worker, samples/s"
    if len(curves) <= MOST_LINES:
        groups = {f"worker {index}": [points] for index, points in enumerate(curves)}
        return _lines(groups, title, clock([run]), zero=True)
    columns = list(zip(*curves, strict=False))
    x = [column[0][0] for column in columns]
    values = [sorted(point[1] for point in column) for column in columns]
    first = style(0)
    handles = [Line2D([], [], color=first.color, lw=2), Line2D([], [], color=first.color, lw=7, alpha=0.25)]
    figure, axes = canvas(title, clock([run]), handles, ["median worker", f"all {len(curves)} workers"])
    axes.fill_between(x, [v[0] for v in values], [v[-1] for v in values], color=first.color, alpha=0.25, lw=0)
    axes.plot(x, [statistics.median(v) for v in values], color=first.color, lw=2)
    axes.set_ylim(bottom=0)
    return finish(figure, axes)


def throughput(runs: Sequence[Run]) -> Figure | None:
    """Throughput of all workers together over time, for each run."""
    groups = {label: [total_rate(run) for run in group] for label, group in grouped(runs).items()}
    return _lines(groups, "Throughput of all workers, samples/s", clock(runs), zero=True)


def memory(runs: Sequence[Run]) -> Figure | None:
    """Resident memory over time, for each run."""
    groups = {
        label: [
            [(tick.seconds, tick.rss_bytes / 2**20) for tick in run.ticks if tick.rss_bytes] for run in group
        ]
        for label, group in grouped(runs).items()
    }
    return _lines(groups, "Resident memory, MiB", "training seconds", zero=True)


def shares(runs: Iterable[Run]) -> dict[int, float]:
    """The share of updates at each staleness, over all runs."""
    counts: dict[int, int] = {}
    for run in runs:
        for value, number in run.finished.staleness.items():
            counts[value] = counts.get(value, 0) + number
    total = sum(counts.values())
    return {value: number / total for value, number in sorted(counts.items())} if total else {}


def staleness(runs: Sequence[Run]) -> Figure | None:
    """Which share of the updates had which staleness: bars side by side, binned when they are many."""
    groups = {label: shares(group) for label, group in grouped(runs).items()}
    if not any(groups.values()):
        return None
    top = max(max(share, default=0) for share in groups.values())
    bin_width = max(1, math.ceil((top + 1) / 24))
    styles = [style(index) for index in range(len(groups))]
    handles = [marker(one._replace(marker="s")) for one in styles]
    labels = list(groups) if len(groups) > 1 else []
    figure, axes = canvas(
        "Staleness, % of updates", "updates by others in between", handles if labels else [], labels
    )
    bar = 0.86 * bin_width / len(groups)
    for index, share in enumerate(groups.values()):
        heights = [0.0] * (top // bin_width + 1)
        for value, part in share.items():
            heights[value // bin_width] += 100 * part
        start = (bin_width - 1) / 2 - bar * (len(groups) - 1) / 2 + bar * index
        positions = [number * bin_width + start for number in range(len(heights))]
        axes.bar(positions, heights, bar * 0.94, color=styles[index].color, lw=0)
    axes.set_xlim(-0.6, max(top, 1) + bin_width - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.set_ylim(bottom=0)
    return finish(figure, axes)


def repeats(runs: Sequence[Run]) -> Figure | None:
    """Every run as a point: its throughput and its final metric."""
    metric = main_metric(runs)
    groups = {
        label: [(run.samples_per_second, final_metric(run, metric)) for run in group]
        for label, group in grouped(runs).items()
    }
    if not any(math.isfinite(x) and math.isfinite(y) for points in groups.values() for x, y in points):
        return None
    handles = [marker(style(index)) for index in range(len(groups))]
    title = f"Final {metric} against throughput, each run"
    figure, axes = canvas(title, "samples/s", handles, list(groups))
    for index, points in enumerate(groups.values()):
        one = style(index)
        sound = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        axes.plot(
            [x for x, _ in sound], [y for _, y in sound],
            ls="", marker=one.marker, ms=8, color=one.color, mec=SURFACE, mew=1,
        )  # fmt: skip
    axes.margins(0.12)
    return finish(figure, axes)


def marker(one: Style) -> Line2D:
    """What stands for a label in a legend of points or bars."""
    return Line2D([], [], ls="", marker=one.marker, ms=7, color=one.color)


def _lines(
    groups: dict[str, list[Points]],
    title: str,
    axis: str,
    *,
    dots: bool = False,
    zero: bool = False,
    target: float | None = None,
) -> Figure | None:
    """One line for each run, in the style of its label."""
    if not any(points for curves in groups.values() for points in curves):
        return None
    names = list(groups) if len(groups) > 1 else []
    styles = [style(index) for index in range(len(groups))]
    handles = [Line2D([], [], color=one.color, ls=one.dash, lw=2) for one in styles]
    figure, axes = canvas(title, axis, handles if names else [], names)
    for one, curves in zip(styles, groups.values(), strict=True):
        several = len(curves) > 1
        for points in curves:
            kept = _thin(points)
            dotted = len(kept) == 1 or (dots and len(kept) <= 40 and not several)
            axes.plot(
                [x for x, _ in kept], [y for _, y in kept],
                color=one.color, ls=one.dash, lw=1.4 if several else 2, alpha=0.75 if several else 1.0,
                marker=one.marker if dotted else "", ms=4,
            )  # fmt: skip
    if zero:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.08 or 1)
    if target is not None:
        axes.axhline(target, color=MUTED, lw=1, ls=(0, (2, 2)), zorder=1)
        axes.annotate(
            f"target {target:g}", (1, target), xycoords=("axes fraction", "data"), xytext=(0, -4),
            textcoords="offset points", ha="right", va="top", size=SMALL, color=MUTED, parse_math=False,
        )  # fmt: skip
    axes.set_xlim(left=0)
    return finish(figure, axes)


def _thin(points: Points) -> Points:
    """At most MOST_POINTS of them, the first and the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(index * step)] for index in range(MOST_POINTS)]


def canvas(title: str, axis: str, handles: Sequence[Line2D], labels: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty plot in the report's looks; fixed margins, so that all plots line up."""
    columns = 2 if max((len(short(label)) for label in labels), default=0) > 11 else 4
    rows = math.ceil(len(labels) / columns)
    height = HEIGHT + max(rows - 1, 0) * ROW
    top = TITLE + rows * ROW
    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor=SURFACE, edgecolor="none")
    axes = figure.add_axes(
        (LEFT / WIDTH, BOTTOM / height, (WIDTH - LEFT - RIGHT) / WIDTH, (height - BOTTOM - top) / height)
    )
    figure.text(
        8 / WIDTH, 1 - 18 / height, title, size=TEXT + 1, weight="bold", color=INK, parse_math=False
    )  # a title on top, for it is read more easily than a rotated label of the axis
    axes.set_facecolor("none")
    axes.set_xlabel(axis, size=TEXT, color=MUTED, labelpad=5)
    axes.grid(True, axis="y", color=GRID, lw=0.8, ls="-")
    axes.grid(False, axis="x")
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set(color=MUTED, linewidth=0.8)
    axes.tick_params(
        axis="both", labelsize=SMALL, labelcolor=MUTED, color=MUTED, width=0.8, length=3, direction="out"
    )
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    if labels:
        _legend(figure, height, handles, labels, columns)
    return figure, axes


def _legend(
    figure: Figure, height: float, handles: Sequence[Line2D], labels: Sequence[str], columns: int
) -> None:
    legend = figure.legend(
        list(handles), [short(label) for label in labels],
        loc="upper left", bbox_to_anchor=(3 / WIDTH, 1 - 23 / height), ncols=columns, frameon=False,
        fontsize=SMALL, labelcolor=INK, handlelength=2.4, columnspacing=1.4, labelspacing=0.45, borderpad=0.3,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label is the user's own words, not TeX


def finish(figure: Figure, axes: Axes) -> Figure:
    """Labels the ticks, now that the limits are known: all of an axis in one unit, with equal decimals."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        plain = ScalarFormatter(useOffset=False, useMathText=False)
        plain.set_scientific(False)
        axis.set_major_formatter(plain if max(abs(low), abs(high)) < 1e4 else FuncFormatter(tick_label))
    return figure


def tick_label(value: float, _position: int | None = None) -> str:
    """A short number for an axis.

    >>> tick_label(0.1 + 0.2), tick_label(30000), tick_label(2500000)
    ('0.3', '30k', '2500k')
    """
    if abs(value) >= 1e7:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e3 else f"{value:.5g}"

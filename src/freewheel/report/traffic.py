"""Simulated runs: how busy the workers and the servers were, and what crossed the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from freewheel.events import Traffic
from freewheel.report import plots, tables, wording
from freewheel.report.runs import Run
from freewheel.report.tables import Table

MOST_BARS = 24  # more workers or shards than this become a histogram
MIB = 2**20

Groups = dict[str, list[float]]

CAPTIONS = {
    "worker_utilisation": "The share of the run that workers spent computing; else they waited.",
    "server_utilisation": "The share of the run that shards were at work; near 100 % they hold everybody up.",
    "traffic": "What each worker pushed, and what it pulled.",
}


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """The plots of a single simulated run, by name; of other runs none."""
    if len(runs) != 1 or (event := runs[0].traffic) is None:
        return {}
    busy, shards = (
        {"": [100 * share for share in _shares(seconds, runs[0])]}
        for seconds in (event.worker_busy_s, event.shard_busy_s)
    )
    sent, received = event.worker_bytes_sent, event.worker_bytes_received
    traffic = {"pushed": [size / MIB for size in sent], "pulled": [size / MIB for size in received]}
    made = {
        "worker_utilisation": _distribution("Workers computing", "% of the time", "worker", busy),
        "server_utilisation": _distribution("Servers at work", "% of the time", "shard", shards),
        "traffic": _distribution("Traffic by worker", "MiB", "worker", traffic),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def beside(name: str, runs: Sequence[Run]) -> Table | None:
    """The numbers of a plot, as a table; None for the plots of others."""
    event = runs[0].traffic
    if event is None or name not in CAPTIONS:
        return None
    return _servers(event, runs[0]) if name == "server_utilisation" else _workers(event, runs[0])


def described(name: str, runs: Sequence[Run]) -> str:
    """A plot in words, for those who cannot see it; empty for the plots of others."""
    event = runs[0].traffic
    if event is None or name not in CAPTIONS:
        return ""
    if name == "traffic":
        sent, received = sum(event.worker_bytes_sent), sum(event.worker_bytes_received)
        return f"Pushed {wording.size(sent)}, pulled {wording.size(received)} in all."
    seconds = event.worker_busy_s if name == "worker_utilisation" else event.shard_busy_s
    shares = _shares(seconds, runs[0])
    low, middle, high = (tables.percent(read(shares)) for read in (min, median, max))
    return f"Median {middle}, from {low} to {high}."


def _shares(busy_s: Sequence[float], run: Run) -> list[float]:
    """Busy seconds as shares of the run; NaN where it took no time."""
    seconds = run.finished.seconds
    return [min(one / seconds, 1.0) if seconds > 0 else math.nan for one in busy_s]


def _workers(event: Traffic, run: Run) -> Table:
    columns: list[tables.Column] = [
        (_shares(event.worker_busy_s, run), tables.percent),
        (event.worker_bytes_sent, wording.size),
        (event.worker_bytes_received, wording.size),
    ]
    number = len(event.worker_busy_s)
    rows = tables.each_or_spread("worker", columns) if number else []
    return Table("Workers", ["Worker", "Busy", "Pushed", "Pulled"], rows, tables.many(number, "worker"))


def _servers(event: Traffic, run: Run) -> Table:
    """The shards, and the links that all workers share; by Little's law a queue is waiting over time."""
    queues = [
        one / run.finished.seconds if run.finished.seconds > 0 else math.nan for one in event.shard_wait_s
    ]
    columns: list[tables.Column] = [
        (_shares(event.shard_busy_s, run), tables.percent),
        (event.shard_bytes, wording.size),
        (queues, "{:.2f}".format),
    ]
    number = len(event.shard_busy_s)
    rows = tables.each_or_spread("shard", columns) if number else []
    names = ("link to the servers", "link from the servers")
    links = zip(names, _shares(event.link_busy_s, run), strict=False)
    rows += [[name, tables.percent(share), "", ""] for name, share in links if share > 0]
    head = ["Server", "Busy", "Traffic", "Waiting on average"]
    return Table("Servers", head, rows, tables.many(number, "shard"))


def _distribution(title: str, unit: str, noun: str, groups: Groups) -> Figure | None:
    """Bars side by side for a few workers or shards; for many, how many of them have which value."""
    number = max(len(values) for values in groups.values())
    if not number or not all(math.isfinite(one) for values in groups.values() for one in values):
        return None
    top = 100.0 if unit.startswith("%") else max(max(values) for values in groups.values()) or 1.0
    return (_bars if number <= MOST_BARS else _histogram)(title, unit, noun, groups, top)


def _bars(title: str, unit: str, noun: str, groups: Groups, top: float) -> Figure:
    figure, axes = _drawn(f"{title}, {unit}", noun, groups, width=1.0, first=0.0)
    axes.set_xlim(-0.6, max(len(values) for values in groups.values()) - 0.4)
    axes.set_ylim(0, top * 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    return plots.finish(figure, axes)


def _histogram(title: str, unit: str, noun: str, groups: Groups, top: float) -> Figure:
    counts = {name: _counts(values, top) for name, values in groups.items()}
    width = top / MOST_BARS
    figure, axes = _drawn(f"{title}: number of {noun}s", unit, counts, width, first=width / 2)
    axes.set_xlim(0, top * 1.04)  # room for the last label
    axes.set_ylim(bottom=0)
    return plots.finish(figure, axes)


def _counts(values: Sequence[float], top: float) -> list[float]:
    """How many of the values fall into each of equal bins from 0 to the top."""
    counts = [0.0] * MOST_BARS
    for value in values:
        counts[min(int(value / top * MOST_BARS), MOST_BARS - 1)] += 1
    return counts


def _drawn(title: str, axis: str, groups: Groups, width: float, first: float) -> tuple[Figure, Axes]:
    """A plot with bars of each group side by side, the first ones around this position."""
    labels = list(groups) if len(groups) > 1 else []
    handles = [plots.marker(plots.style(index)._replace(marker="s")) for index in range(len(labels))]
    figure, axes = plots.canvas(title, axis, handles, labels)
    bar = 0.86 * width / len(groups)
    for index, heights in enumerate(groups.values()):
        start = first + bar * (index - (len(groups) - 1) / 2)
        positions = [start + width * place for place in range(len(heights))]
        axes.bar(positions, heights, bar * 0.94, color=plots.style(index).color, lw=0)
    return figure, axes

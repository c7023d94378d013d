"""The HTML page: one self-contained file that works offline, light and dark, on a desk and on a phone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from freewheel.events import WorkerFailed, WorkerSlowed
from freewheel.report import plots, svg, tables, traffic, wording
from freewheel.report.judgement import verdict
from freewheel.report.runs import TRAINING_LOSS, UNFINISHED, Run, final_metric, main_metric, summarize
from freewheel.report.tables import Table

_CAPTIONS = {
    "metric_by_seconds": "Each point is an evaluation; the training clock stands still meanwhile.",
    "metric_by_samples": "The same points against the work done: how much a sample was worth.",
    "training_loss": "Mean loss over the steps since the point before, on the minibatches as they came.",
    "repeats": "One point for each run; up and to the right is better where a larger metric is better.",
    "throughput": "Means over windows of at least half a second.",
    "staleness": "Updates that others applied between a worker's read of the weights and its own update.",
    "memory": "Resident memory of the process, data and libraries included.",
    **traffic.CAPTIONS,
}
_ENDS = {
    "interrupted": "The run was interrupted; what was trained until then is shown.",
    "error": "The run ended with an error; what was trained until then is shown.",
    UNFINISHED: "The record ends before the run did; what was recorded until then is shown.",
}


class Plot(NamedTuple):
    """A plot on the page."""

    name: str
    svg: str
    caption: str
    table: Table | None


def render(
    runs: Sequence[Run], title: str, figures: Mapping[str, Figure], baseline: str | None = None
) -> str:
    """The page as a string."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("freewheel.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    single = len(runs) == 1
    summaries = summarize(runs)
    first = tables.workers(runs[0]) if single else tables.every_run(runs)
    detail = [first, tables.ledger(runs), tables.settings(runs), tables.environment(runs)]
    return environment.from_string(source).render(
        title=title,
        kind=_kind(runs),
        label=runs[0].label if single else "",
        lead=headline(runs[0]) if single else "",
        warnings=_warnings(runs[0]) if single else [],
        verdict=[] if single else [*verdict(summaries, baseline), *_predicted(runs)],
        tiles=tables.tiles(runs[0]) if single else [],
        overview=[] if single else [tables.methods(summaries)],
        plots=[_plot(name, figure, runs) for name, figure in figures.items()],
        tables=[table for table in detail if table.rows],
        clock=" ".join(_predicted(runs)) or "Seconds are of the training clock.",
        series=plots.SERIES,
    )


def _kind(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        return "Comparison"
    return "Simulated run" if runs[0].simulated else "Run"


def _predicted(runs: Sequence[Run]) -> list[str]:
    """Says whose times were predicted, if any were."""
    labels = list(dict.fromkeys(run.label for run in runs if run.simulated))
    if not labels:
        return []
    if all(run.simulated for run in runs):
        return ["Seconds are predicted by simulation, not measured; the gradients are true ones."]
    return [f"Seconds of {', '.join(labels)} are predicted by simulation; the others were measured."]


def headline(run: Run) -> str:
    """The result in one sentence with its numbers."""
    begin, done, metric = run.started, run.finished, main_metric([run])
    workers = run.changes[0].before if run.changes else begin.workers
    model = begin.config.get("model")
    weights = wording.plural(begin.trainable, "weight")
    what = f"The model {model} ({weights})" if isinstance(model, str) else f"A model with {weights}"
    how = {
        "threads": wording.plural(workers, "worker thread"),
        "simulated": wording.plural(workers, "simulated worker"),
        "processes": wording.plural(workers, "worker process", "worker processes"),
    }.get(begin.engine, f"{wording.plural(workers, 'worker')} ({begin.engine})")
    if run.changes:
        how += f", {run.changes[-1].after} in the end"
    value = final_metric(run, metric)
    result = f"{metric} {wording.metric(value)}" if math.isfinite(value) else f"no {metric} was measured"
    if not done.samples:
        return f"{what} was to be trained by {begin.method} on {how}; no sample was processed."
    speed = f", {wording.rate(run.samples_per_second)} samples per second" if done.seconds > 0 else ""
    time = f"{'a predicted ' * run.simulated}{wording.duration(done.seconds)}"
    spent = f"after {wording.plural(done.samples, 'sample')} in {time}{speed}"
    return f"{what} was trained by {begin.method} on {how}: {result} {spent}."


def _warnings(run: Run) -> list[str]:
    ended = [_ENDS[run.finished.reason]] if run.finished.reason in _ENDS else []
    failures = [event for event in run.events if isinstance(event, WorkerFailed)]
    ended += [
        f"Worker {one.worker} failed in its step {one.sequence}: {one.error}"
        f"{'; another took its place' * one.replaced}"
        for one in failures
    ]
    slow = [event for event in run.events if isinstance(event, WorkerSlowed) and event.slow]
    ended += [
        f"Worker {one.worker} was slow from {wording.duration(one.seconds)} on: its steps took"
        f" {one.times:.1f} times as long as the others'."
        for one in slow
    ]
    ended += [
        f"The number of workers went from {change.before} to {change.after}"
        f" {wording.duration(change.seconds)} into the training."
        for change in run.changes
    ]
    if run.started.target and run.complete and run.finished.target_seconds is None:
        name, wanted = run.started.target[:2]
        ended.append(f"The target, {name} {wanted:g}, was not reached.")
    return ended


def _plot(name: str, figure: Figure, runs: Sequence[Run]) -> Plot:
    title = figure.texts[0].get_text()
    caption = _CAPTIONS.get(name, "")
    if name == "metric_by_seconds" and main_metric(runs) == TRAINING_LOSS:
        caption = "The model was not evaluated; this is the loss on the minibatches as they came."
    label = f"{title}. {_described(name, runs)}".strip()
    return Plot(
        name,
        svg.to_svg(figure, name, label),
        caption,
        traffic.beside(name, runs) or tables.beside(name, runs),
    )


def _described(name: str, runs: Sequence[Run]) -> str:
    """The plot in words, for those who cannot see it."""
    metric = main_metric(runs)
    if name.startswith("metric_by"):
        by = name.removeprefix("metric_by_")
        curves = [(run, plots.curve(run, metric, by)) for run in runs[:8]]
        return " ".join(
            f"{run.label}: from {wording.metric(points[0][1])} to {wording.metric(points[-1][1])}."
            for run, points in curves
            if points
        )
    if name == "throughput":
        return " ".join(
            f"{run.label}: {wording.rate(run.samples_per_second)} on average." for run in runs[:8]
        )
    if name == "staleness":
        return " ".join(f"{run.label}: mean {wording.rate(run.mean_staleness)}." for run in runs[:8])
    if name == "memory":
        return " ".join(f"{run.label}: peak {wording.size(run.finished.peak_rss_bytes)}." for run in runs[:8])
    return traffic.described(name, runs)

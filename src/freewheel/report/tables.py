"""The tables and key figures of a report, as plain text in rows; the page only lays them out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from freewheel.report import plots, wording
from freewheel.report.runs import TRAINING_LOSS, Run, Summary, final_metric, grouped, main_metric

MOST_ROWS = 24  # of a table beside a plot
_ENVIRONMENT = ("versions", "machine", "environment", "platform", "cores", "freewheel", "torch", "python")
_ADDED = (
    "method",
    "engine",
    "workers",
    "batch_size",
    "seed",
    "target",
    "planned_samples",
    "max_seconds",
    "trainable",
)
_QUANTILES = {"least": 0.0, "lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75, "most": 1.0}

Column = tuple[Sequence[float], Callable[[float], str]]
"""The values of a column, and how they are worded."""


class Table(NamedTuple):
    """A table: the first column names the rows, the others are numbers or short words."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    words: bool = False  # left-aligned cells that may break
    total: bool = False  # the last row sums up


class Tile(NamedTuple):
    """A key figure."""

    name: str
    value: str
    note: str = ""


def tiles(run: Run) -> list[Tile]:
    """The key figures of one run."""
    done, metric = run.finished, main_metric([run])
    workers = max(run.started.workers, 1)
    value = final_metric(run, metric)
    others = [f"{name} {wording.metric(other)}" for name, other in run.metrics.items() if name != metric]
    rate = run.samples_per_second
    steps = done.steps / done.seconds if done.seconds > 0 and done.steps else math.nan
    measured = math.isfinite(done.wall_seconds) and not run.simulated  # a simulated run's clocks are virtual
    made = [
        Tile(f"Final {metric}", wording.metric(value), ", ".join(others[:2])),
        Tile(
            "Predicted time" if run.simulated else "Training time",
            wording.duration(done.seconds),
            f"{wording.duration(done.wall_seconds)} with evaluation" if measured else "",
        ),
        Tile(
            "Samples per second",
            wording.rate(rate),
            f"{wording.rate(rate / workers)} for each worker"
            if math.isfinite(rate) and not run.changes
            else "",
        ),
        Tile(
            "Steps per second",
            wording.rate(steps),
            f"{wording.count(done.steps)} steps" if done.steps else "",
        ),
        *([] if run.simulated else _cost_tiles(run)),
        Tile(
            "Mean staleness",
            wording.rate(run.mean_staleness),
            f"at most {max(done.staleness)}" if done.staleness else "",
        ),
    ]
    if run.started.target:
        name, wanted = run.started.target[:2]
        reached = done.target_seconds
        when = wording.duration(reached) if reached is not None else "not reached"
        to_target = "Predicted time to target" if run.simulated else "Time to target"
        made.insert(1, Tile(to_target, when, f"{name} {wanted:g}"))
    return made


def _cost_tiles(run: Run) -> list[Tile]:
    """What the run took of the machine; a simulated run is no measurement of that."""
    done = run.finished
    busy = done.cpu_seconds / done.seconds if done.seconds > 0 else math.nan
    cores = f"{busy:.2f} cores busy on average" if math.isfinite(busy) else ""
    start = f"{_size(done.start_rss_bytes)} at the start" if done.start_rss_bytes else ""
    return [
        Tile("CPU time", wording.duration(done.cpu_seconds), cores),
        Tile("Peak memory", _size(done.peak_rss_bytes), start),
    ]


def methods(summaries: Sequence[Summary]) -> Table:
    """A row for each label: median, and the range over its repeats."""
    metric = summaries[0].metric
    with_target = any(one.target for one in summaries)
    columns: list[tuple[str, Callable[[Any], float | None], Callable[[float], str]]] = [
        (f"Final {metric}", lambda run: run.metric, wording.metric),
        ("Training time", lambda run: run.seconds, wording.duration),
        ("Samples/s", lambda run: run.samples_per_second, wording.rate),
        *([("Time to target", lambda run: run.target_seconds, wording.duration)] if with_target else []),
        ("CPU time", lambda run: run.cpu_seconds, wording.duration),
        ("Peak memory", lambda run: run.peak_bytes, _size),
    ]
    if not any(repeat.peak_bytes > 0 for one in summaries for repeat in one.repeats):
        del columns[-2:]  # all were simulated: nothing was measured
    rows = []
    for one in summaries:
        repeats = one.complete or one.repeats
        cells = [_spread([read(run) for run in repeats], words) for _, read, words in columns]
        rows.append([one.label, str(len(repeats)), *cells])
    note = "Medians over the repeats that came to their end; below them the smallest and the largest value."
    return Table("Methods", ["Method", "Runs", *(name for name, _, _ in columns)], rows, note)


def _spread(values: Sequence[float | None], words: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return wording.MISSING
    some = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    middle = words(median(known)) + some
    low, high = words(min(known)), words(max(known))
    return middle if low == high else f"{middle}\n{low} to {high}"


def every_run(runs: Sequence[Run]) -> Table:
    """A row for each run of a comparison."""
    metric = main_metric(runs)
    simulated = all(run.simulated for run in runs)
    rows = [
        [
            run.label,
            str(run.started.seed),
            run.finished.reason,
            wording.metric(final_metric(run, metric)),
            wording.count(run.finished.samples),
            wording.duration(run.finished.seconds),
            wording.rate(run.samples_per_second),
            wording.rate(run.mean_staleness),
            *([] if simulated else _cost_cells(run)),
        ]
        for run in runs
    ]
    head = ["Method", "Seed", "Ended by", f"Final {metric}", "Samples", "Time", "Samples/s", "Mean staleness"]
    return Table("Every run", head + ([] if simulated else ["CPU time", "Peak memory"]), rows)


def _cost_cells(run: Run) -> list[str]:
    if run.simulated:
        return [wording.MISSING] * 2
    return [wording.duration(run.finished.cpu_seconds), _size(run.finished.peak_rss_bytes)]


def beside(name: str, runs: Sequence[Run]) -> Table | None:
    """The numbers of a plot, as a table."""
    metric = main_metric(runs)
    if name == "metric_by_seconds" and len(runs) == 1 and metric != TRAINING_LOSS:
        return evaluations(runs[0])
    if name in ("metric_by_seconds", "metric_by_samples"):
        return _curves(runs, metric, "seconds" if name == "metric_by_seconds" else "samples")
    if name == "training_loss":
        return _curves(runs, TRAINING_LOSS, "seconds")
    if name == "throughput" and len(runs) == 1:
        return workers(runs[0])
    return _staleness(runs) if name == "staleness" else None


def evaluations(run: Run) -> Table:
    """Every evaluation of a run, thinned to a readable number."""
    names = list(dict.fromkeys(name for one in run.evaluations for name in one.metrics))
    rows = [
        [
            f"{one.seconds:.2f}",
            wording.count(one.samples),
            f"{one.epoch:.2f}",
            *(wording.metric(one.metrics.get(name, math.nan)) for name in names),
        ]
        for one in _sample(run.evaluations)
    ]
    return Table("Evaluations", ["Seconds", "Samples", "Epoch", *names], rows, _thinned(len(run.evaluations)))


def _curves(runs: Sequence[Run], metric: str, by: str) -> Table:
    """Medians over the repeats at their k-th point."""
    groups = {
        label: [plots.curve(run, metric, by) for run in group] for label, group in grouped(runs).items()
    }
    longest = max((len(points) for curves in groups.values() for points in curves), default=0)
    axis = wording.count if by == "samples" else "{:.2f}".format
    rows = []
    for index in _sample(range(longest)):
        row = [str(index + 1)]
        for curves in groups.values():
            here = [points[index] for points in curves if index < len(points)]
            row.append(axis(median([x for x, _ in here])) if here else "")
            row.append(wording.metric(median([y for _, y in here])) if here else "")
        rows.append(row)
    prefix = [f"{label}: " if len(groups) > 1 else "" for label in groups]
    head = ["Point", *(f"{before}{what}" for before in prefix for what in (by, metric))]
    return Table(f"{metric} by {by}", head, rows, _thinned(longest))


def workers(run: Run) -> Table:
    """What each worker did."""
    done = run.finished
    samples: list[float] = list(done.worker_samples)
    steps = [*done.worker_steps, *[math.nan] * len(samples)][: len(samples)]
    time, total = done.seconds or math.nan, done.samples or math.nan
    columns: list[Column] = [
        (samples, wording.count),
        (steps, wording.count),
        ([own / time for own in samples], wording.rate),
        ([own / total for own in samples], percent),
    ]
    head = ["Worker", "Samples", "Steps", "Samples/s", "Share"]
    return Table("Workers", head, each_or_spread("worker", columns), many(len(samples), "worker"))


def each_or_spread(noun: str, columns: Sequence[Column]) -> list[list[str]]:
    """A row for each of a few things; of many the least, the quartiles and the most of each column."""
    number = len(columns[0][0])
    if number <= MOST_ROWS:
        return [
            [f"{noun} {index}", *(words(values[index]) for values, words in columns)]
            for index in range(number)
        ]
    ordered = [(sorted(values), words) for values, words in columns]
    return [
        [name, *(words(values[round(share * (number - 1))]) for values, words in ordered)]
        for name, share in _QUANTILES.items()
    ]


def many(number: int, noun: str) -> str:
    """Says what the rows of :func:`each_or_spread` are, where they are not one for each."""
    return f"Over {number:,} {noun}s, each column for itself." if number > MOST_ROWS else ""


def _staleness(runs: Sequence[Run]) -> Table:
    groups = {label: plots.shares(group) for label, group in grouped(runs).items()}
    values = sorted({value for share in groups.values() for value in share})
    shown = values if len(values) <= MOST_ROWS else values[: MOST_ROWS - 1]
    rows = [[str(value), *(percent(share.get(value, 0.0)) for share in groups.values())] for value in shown]
    if len(shown) < len(values):
        rest = [sum(part for value, part in share.items() if value > shown[-1]) for share in groups.values()]
        rows.append([f"{shown[-1] + 1} or more", *map(percent, rest)])
    return Table("Staleness", ["Updates in between", *groups], rows)


def ledger(runs: Sequence[Run]) -> Table:
    """What became of every update that was pushed, summed over repeats; says when it does not add up."""
    columns = {
        label: _ledger([run.finished.ledger for run in group]) for label, group in grouped(runs).items()
    }
    reasons = list(dict.fromkeys(reason for column in columns.values() for reason in column["dropped"]))
    keys = ["applied", "absorbed", "pending"]
    rows = [[f"{key}", *(wording.count(column[key]) for column in columns.values())] for key in keys]
    rows += [
        [
            f"dropped: {reason}",
            *(wording.count(column["dropped"].get(reason, 0)) for column in columns.values()),
        ]
        for reason in reasons
    ]
    if not reasons:
        rows.append(["dropped", *(wording.count(0 * column["pushed"]) for column in columns.values())])
    rows.append(
        ["pushed (sum of the above)", *(wording.count(column["pushed"]) for column in columns.values())]
    )
    head = ["Updates", *(columns if len(columns) > 1 else ["Count"])]
    note = " ".join(_balance(label, column) for label, column in columns.items()).strip()
    return Table("Ledger", head, rows, note, total=True)


def _ledger(ledgers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = dict.fromkeys(("pushed", "applied", "absorbed", "pending"), math.nan)
    dropped: dict[str, int] = {}
    for one in ledgers:
        if "pushed" not in one:
            continue
        for key in total:
            total[key] = (0 if math.isnan(total[key]) else total[key]) + one.get(key, 0)
        for reason, number in dict(one.get("dropped") or {}).items():
            dropped[str(reason)] = dropped.get(str(reason), 0) + number
    return {**total, "dropped": dropped}


def _balance(label: str, column: Mapping[str, Any]) -> str:
    if math.isnan(column["pushed"]):
        return f"{label}: not recorded, for the run did not finish."
    missing = column["pushed"] - column["applied"] - column["absorbed"] - column["pending"]
    missing -= sum(column["dropped"].values())
    verb = "is" if abs(missing) == 1 else "are"
    words = f"{label} does not add up: {wording.plural(missing, 'update')} {verb} unaccounted for."
    return words if missing else ""


def settings(runs: Sequence[Run]) -> Table:
    """The settings: one column for each label, of its first run."""
    return _configuration("Settings", runs, lambda key: key.split(".")[0] not in _ENVIRONMENT)


def environment(runs: Sequence[Run]) -> Table:
    """Versions and machine."""
    return _configuration("Environment", runs, lambda key: key.split(".")[0] in _ENVIRONMENT)


def _configuration(title: str, runs: Sequence[Run], wanted: Callable[[str], bool]) -> Table:
    columns = {
        label: {key: value for key, value in _flat_settings(group[0]).items() if wanted(key)}
        for label, group in grouped(runs).items()
    }
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    first, *others = columns.values()
    if all(column == first for column in others):
        columns = {"All methods" if others else "Value": first}
    rows = [[_readable(key), *(column.get(key, "") for column in columns.values())] for key in keys]
    return Table(title, ["", *columns], rows, words=True)


def _readable(key: str) -> str:
    first, _, rest = key.partition(".")
    return (rest if first in _ENVIRONMENT and rest else key).replace("_", " ").replace(".", " · ")


def _flat_settings(run: Run) -> dict[str, str]:
    top = {name: getattr(run.started, name) for name in _ADDED}
    return {key: _value(value) for key, value in {**flatten(top), **flatten(run.started.config)}.items()}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names.

    >>> flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]})
    {'a.b': 1, 'd': [1, 2]}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(value: float) -> str:
    return wording.size(value) if value > 0 else wording.MISSING


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f} %" if math.isfinite(share) else wording.MISSING


def _sample(values: Sequence[Any]) -> list[Any]:
    if len(values) <= MOST_ROWS:
        return list(values)
    step = (len(values) - 1) / (MOST_ROWS - 1)
    return [values[round(index * step)] for index in range(MOST_ROWS)]


def _thinned(number: int) -> str:
    return f"{MOST_ROWS} of {number}, evenly spaced." if number > MOST_ROWS else ""

"""What a benchmark found: tables, and targets that were met or not, as JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Values, say
from benchmarks.stats import Interval, median_interval, paired_ratios, spread

BUSY_PERCENT = 10.0


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Check:
    """One target: ``met`` is None where it was measured but has no target, or could not be judged."""

    what: str
    target: str
    measured: str
    met: bool | None


@dataclass(frozen=True)
class Report:
    """Everything that a benchmark writes.

    Attributes:
        name: of its files.
        title: of its page.
        method: what is held equal, what is not, and how it was measured; Markdown.
        environment: machine, versions, commit, date.
        settings: of this run.
        tables: for people.
        checks: against the project's targets.
        raw: every single measurement, for anyone who wants other statistics.
        quick: a trial of the path, whose numbers mean nothing.
        timed: what it measures depends on who else uses the machine.
    """

    name: str
    title: str
    method: str
    environment: Values
    settings: Values
    tables: list[Table]
    checks: list[Check]
    raw: Any = field(repr=False)
    quick: bool = False
    timed: bool = True


def publish(report: Report, folder: Path) -> Report:
    """Writes ``NAME.json`` and ``NAME.md`` into the folder, prints the tables, returns the report."""
    if report.quick:  # nothing can be judged by a trial of the path
        report = replace(report, checks=[replace(check, met=None) for check in report.checks])
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_jsonable(asdict(report)), indent=1, sort_keys=True, allow_nan=False)
    (folder / f"{report.name}.json").write_text(text + "\n", encoding="utf-8")
    page = markdown(report)
    (folder / f"{report.name}.md").write_text(page, encoding="utf-8")
    print(page)
    return report


def read(path: Path) -> Report:
    """A report from its JSON file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    tables = [
        Table(t["title"], tuple(t["columns"]), [tuple(row) for row in t["rows"]])
        for t in values.pop("tables")
    ]
    checks = [Check(**check) for check in values.pop("checks")]
    return Report(tables=tables, checks=checks, **values)


def markdown(report: Report) -> str:
    """The page of one benchmark."""
    parts = [f"# {report.title}", ""]
    if report.quick:
        parts += ["**A quick trial of the path: the numbers mean nothing.**", ""]
    parts += [report.method.strip(), ""]
    if report.checks:
        parts += ["## Targets", "", *check_lines(report.checks), ""]
    for table in report.tables:
        parts += [f"## {table.title}", "", *grid(table.columns, table.rows), ""]
    parts += ["## Machine and settings", "", *_machine(report.environment, report.timed)]
    parts += [f"- {name}: {_setting(value)}" for name, value in report.settings.items()]
    return "\n".join(parts) + "\n"


def summary(reports: Sequence[Report]) -> str:
    """The page over all benchmarks: every target, and whether it was met."""
    parts = ["# Benchmark results", ""]
    if any(report.quick for report in reports):
        parts += ["**A quick trial of the path: the numbers mean nothing.**", ""]
    judged = [check for report in reports for check in report.checks if check.met is not None]
    met = sum(check.met is True for check in judged)
    count = f"{met} of {len(judged)} targets met."
    parts += [f"{count} Every page says what was held equal; its JSON file has every single measurement."]
    for report in reports:
        date, commit = report.environment["date"][:10], report.environment["commit"]
        parts += ["", f"## [{report.title}]({report.name}.md)", "", f"{date}, commit {commit}", ""]
        parts += check_lines(report.checks)
    if reports:
        parts += [
            "",
            "## Machine",
            "",
            *_machine(reports[-1].environment, any(report.timed for report in reports)),
        ]
    return "\n".join(parts) + "\n"


def check_lines(checks: Iterable[Check]) -> list[str]:
    """Checks as a Markdown table."""
    words = {True: "yes", False: "**no**", None: "-"}
    rows = [(check.what, check.target, check.measured, words[check.met]) for check in checks]
    return grid(("what", "target", "measured", "met"), rows)


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    r"""A Markdown table; columns whose cells are numbers are set to the right by their first row.

    Example:
        >>> print("\n".join(grid(("who", "rate"), [("us", "1.5")])))
        | who | rate |
        |:--|--:|
        | us | 1.5 |
    """
    listed = [list(row) for row in rows]
    if wrong := [row for row in listed if len(row) != len(columns)]:
        raise ValueError(f"a row has {len(wrong[0])} cells, the table {len(columns)} columns: {wrong[0]}")
    first = listed[0] if listed else [""] * len(columns)
    marks = ["--:" if cell[:1].isdigit() or cell[:1] == "-" else ":--" for cell in first]
    lines = ["| " + " | ".join(columns) + " |", "|" + "|".join(marks) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in listed]


def rate_table(title: str, rates: dict[str, list[float]], unit: str = "samples/s") -> Table:
    """Median and spread of every contestant."""
    rows = []
    for label, values in rates.items():
        s = spread(values)
        span = [number(s.median), f"{number(s.lower_quartile)} to {number(s.upper_quartile)}"]
        rows.append((label, *span, f"{number(s.minimum)} to {number(s.maximum)}", str(s.runs)))
    return Table(title, ("contestant", f"median {unit}", "quartiles", "range", "runs"), rows)


def number(value: float) -> str:
    """Three figures or whole thousands: ``0.951``, ``12.3``, ``104,000``.

    Example:
        >>> number(0.9512), number(12.34), number(104321.0)
        ('0.951', '12.3', '104,321')
    """
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 1000
        else f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.3f}"
    )


def with_interval(value: float, interval: Interval) -> str:
    """A value and its interval as text: ``1.52 (95 % interval 1.49 to 1.55)``."""
    if interval.confidence <= 0:
        return f"{number(value)} (one run)"
    percent = f"{math.floor(100 * interval.confidence + 1e-9)} %"  # rounded down: never more than it is
    if math.isinf(interval.high):
        return f"{number(value)} ({percent} bound {number(interval.low)})"
    return f"{number(value)} ({percent} interval {number(interval.low)} to {number(interval.high)})"


def rates(results: dict[str, list[Values]], key: str = "samples_per_second") -> dict[str, list[float]]:
    """One number of every result."""
    return {label: [float(values[key]) for values in runs] for label, runs in results.items()}


def at_least(
    what: str, target: float, ours: Sequence[float], theirs: Sequence[float], note: str = ""
) -> Check:
    """The target that the median of the paired ratios ours / theirs is at least this."""
    ratios = paired_ratios(ours, theirs)
    middle = spread(ratios).median
    return Check(
        what, f">= {target:g}{note}", with_interval(middle, median_interval(ratios)), middle >= target
    )


def warn_if_busy(environment: Values) -> None:
    """Says that somebody else is using the machine."""
    if environment["busy_before_percent"] > BUSY_PERCENT:
        busy = environment["busy_before_percent"]
        say(f"warning: the machine was {busy:.0f} % busy before the start; the results will be unreliable")


def _machine(environment: Values, timed: bool) -> list[str]:
    e = environment
    versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
    busy = e["busy_before_percent"]
    doubt = " (**somebody else was using it: do not trust the numbers**)" if busy > BUSY_PERCENT else ""
    note = doubt if timed else " (nothing here is timed)"
    return [
        f"- {e['cpu']}, {e['cores']} cores, {e['memory_gib']} GiB, {e['system']}",
        f"- Python {e['python']}, {versions}; commit {e['commit']}; {e['date']}",
        f"- processor use before the start: {busy:.0f} %{note}",
    ]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _jsonable(value: Any) -> Any:
    """NaN and infinity as null: standard JSON has neither."""
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Accuracies of simulated runs side by side: paired differences, and a table of every run."""

from __future__ import annotations

from statistics import fmean

from benchmarks.harness import Values
from benchmarks.reporting import Table
from benchmarks.stats import mean_interval


def points(results: dict[str, list[Values]], label: str, reference: str) -> tuple[float, str]:
    """Mean paired difference in points, and as text with its interval."""
    pairs = zip(results[label], results[reference], strict=True)
    differences = [100 * (ours["accuracy"] - theirs["accuracy"]) for ours, theirs in pairs]
    text = f"{fmean(differences):+.2f}"
    if len(differences) > 1:
        low, high, _ = mean_interval(differences)
        text += f" (95 % interval {low:+.2f} to {high:+.2f})"
    return fmean(differences), text


def table_of(results: dict[str, list[Values]]) -> Table:
    """Every run of every contestant."""
    columns = ("run", "mean accuracy", "every seed", "bytes a push", "dropped", "staleness")
    rows = []
    for label, runs in results.items():
        accuracies = [run["accuracy"] for run in runs]
        first = runs[0]
        dropped = sum(first["ledger"]["dropped"].values())
        rows.append(
            (
                label,
                f"{fmean(accuracies):.4f}",
                ", ".join(f"{value:.4f}" for value in accuracies),
                "diverged"
                if first["diverged"]
                else f"{first['sent_bytes'] / first['ledger']['pushed']:,.0f}",
                str(dropped),
                f"{first['mean_staleness']:.1f}",
            )
        )
    return Table("Every run", columns, rows)

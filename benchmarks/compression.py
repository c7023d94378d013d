"""Compressed gradients: accuracy and bytes on the simulator.

Target: top-k at 1 % with error feedback, and 8 bits, end within one point of uncompressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Store, Values, measure
from benchmarks.reporting import Check, Report, Table
from benchmarks.stats import mean_interval

WITHIN_POINTS = 1.0
UNCOMPRESSED = "none"
COMPRESSED = ("top_k 1 %", "top_k 1 %, no feedback", "eight_bit", "half")
METHOD = """
Test accuracy of an MLP (784-256-10) after two epochs of Fashion-MNIST, eight asynchronous workers of equal
speed on the simulator, batch 16 a worker, rate 0.05 annealed, no momentum. Workers push what the receiver
would decode; bytes are those of the pushes alone. Pairs of runs share first weights, order of the data and
times.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 3, argv)
    environment = harness.environment()
    found = harness.data_at_hand()
    base: Values = {"model": "mlp", "data": found["data"], "workers": 8, "batch_size": 16, "epochs": 2}
    base |= {"step_s": 0.01, "sigma": 0.2, "method": "stale_synchronous", "options": {"bound": 10**6}}
    if options.quick:
        base |= {"limit": 3200, "test_limit": 500, "epochs": 1}
    folder = harness.folder_of(options)
    store = Store(folder / "compression.unfinished.jsonl")
    results = measure(_contestants(base), harness.repeats_of(options), store)
    judged = found["data"] == "fashion-mnist"
    checks = _checks(results, judged)
    title = "Compressed gradients: accuracy and bytes on the simulator"
    report = Report(
        "compression", title, METHOD, environment, base, [_table(results)], checks, results, options.quick
    )
    reporting.publish(report, folder)
    store.clear()
    return report


def _contestants(base: Values) -> list[Contestant]:
    single = {**base, "lr": 0.05, "momentum": 0.0}
    return [
        Contestant(f"compression: {name}", "simulate", 1, {**single, "compression": name})
        for name in (UNCOMPRESSED, *COMPRESSED)
    ]


def _points(results: dict[str, list[Values]], label: str, reference: str) -> tuple[float, str]:
    """Mean paired difference in points, and as text with its interval."""
    pairs = zip(results[label], results[reference], strict=True)
    points = [100 * (ours["accuracy"] - theirs["accuracy"]) for ours, theirs in pairs]
    text = f"{fmean(points):+.2f}"
    if len(points) > 1:
        low, high, _ = mean_interval(points)
        text += f" (95 % interval {low:+.2f} to {high:+.2f})"
    return fmean(points), text


def _checks(results: dict[str, list[Values]], judged: bool) -> list[Check]:
    reference = f"compression: {UNCOMPRESSED}"
    checks = []
    for name in COMPRESSED:
        label = f"compression: {name}"
        mean, text = _points(results, label, reference)
        ratio = results[reference][0]["sent_bytes"] / results[label][0]["sent_bytes"]
        judge = judged and name in ("top_k 1 %", "eight_bit")
        target = f">= {-WITHIN_POINTS:g}" if name in ("top_k 1 %", "eight_bit") else "reported"
        what = f"{label}, {ratio:.1f} times fewer bytes, - uncompressed, points"
        checks.append(Check(what, target, text, mean >= -WITHIN_POINTS if judge else None))
    return checks


def _table(results: dict[str, list[Values]]) -> Table:
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


if __name__ == "__main__":
    main()

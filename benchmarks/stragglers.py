"""Time to 0.88 accuracy with one slow worker among eight, on the simulator.

Target: the best asynchronous method, and synchronous training with a backup worker, each reach it in half the
time of synchronous training. With equal workers the gain is reported as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Store, Values, measure
from benchmarks.reporting import Check, Report, Table, number
from benchmarks.stats import spread

GOAL, TWICE = 0.88, 2.0
SYNCHRONOUS, BACKUP = "synchronous", "synchronous, 1 backup worker"
METHODS: dict[str, Values] = {
    SYNCHRONOUS: {"method": "synchronous", "momentum": 0.9},
    BACKUP: {"method": "synchronous", "momentum": 0.9, "options": {"backup_workers": 1}},
    "asynchronous": {"method": "stale_synchronous", "momentum": 0.0, "options": {"bound": 10**6}},
    "stale synchronous, bound 3": {"method": "stale_synchronous", "momentum": 0.0, "options": {"bound": 3}},
    "delay compensated": {"method": "delay_compensated"},
}
RATES = {0.9: (0.05, 0.1), 0.0: (0.03, 0.05)}
EPOCHS = (3, 5)
SLOW = 4.0
SCENARIOS: dict[str, float | None] = {
    "one of eight is four times slower": SLOW,
    "eight equal workers": None,
}
METHOD = """
Virtual seconds until the test accuracy of an MLP (784-256-10, batch 16 a worker) on Fashion-MNIST is 0.88 at
two evaluations in a row (one every 6,000 examples, which takes no virtual time). Eight workers; a step takes
a log-normal time of median 10 ms (sigma 0.2), for the slow worker four times as long; the network takes no
time, so that only waiting is compared. The gradients are the true ones.

Every method gets its own best learning rate (of two) and number of epochs that the rate is annealed over
(of two), found with seed 0 and the slow worker; that point is then run with other seeds, with the slow
worker and without, which is what is reported: medians. A run that did not reach the target counts as never,
but a synchronous one, to which the others are compared, as at the end of its run, in its favour.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 3, argv)
    environment = harness.environment()
    found = harness.data_at_hand()
    base: Values = {"model": "mlp", "data": found["data"], "workers": 8, "batch_size": 16}
    base |= {"step_s": 0.01, "sigma": 0.2, "target": GOAL, "evaluate_every": 6000}
    if options.quick:
        base |= {"limit": 3200, "test_limit": 500, "evaluate_every": 1600, "target": 0.3}
    folder = harness.folder_of(options)
    store = Store(folder / "stragglers.unfinished.jsonl")
    chosen: dict[str, dict[str, list[Values]]] = {}
    grid = _grid({**base, "slow": SLOW}, store, options.quick)
    best = _best(grid)
    for scenario, slow in SCENARIOS.items():
        contestants = [
            Contestant(label, "simulate", 1, {**point, "slow": slow, "first_seed": 1})
            for label, (point, _) in best.items()
        ]
        chosen[scenario] = measure(contestants, harness.repeats_of(options), store)
    tables = [_table(scenario, results, best) for scenario, results in chosen.items()]
    judged = found["data"] == "fashion-mnist"
    checks = [check for scenario, results in chosen.items() for check in _checks(scenario, results, judged)]
    settings = {**base, "learning rates": {str(k): v for k, v in RATES.items()}, "epochs": EPOCHS}
    raw = {"grid": grid, "best": chosen}
    title = "Stragglers: time to accuracy on the simulator"
    report = Report(
        "stragglers", title, METHOD, environment, settings, tables, checks, raw, options.quick, timed=False
    )
    reporting.publish(report, folder)
    store.clear()
    return report


def _grid(base: Values, store: Store, quick: bool) -> dict[str, list[tuple[Values, Values]]]:
    """Every method at every point: (settings, what came of it)."""
    points: dict[str, list[Values]] = {}
    for label, method in METHODS.items():
        rates = RATES[method.get("momentum", 0.0)]
        points[label] = [
            {**base, **method, "lr": lr, "epochs": epochs}
            for lr in (rates[:1] if quick else rates)
            for epochs in (EPOCHS[:1] if quick else EPOCHS)
        ]
    contestants = [
        Contestant(f"{label}, lr {point['lr']}, {point['epochs']} epochs", "simulate", 1, point)
        for label, listed in points.items()
        for point in listed
    ]
    results = iter(measure(contestants, 1, store).values())
    return {label: [(point, next(results)[0]) for point in listed] for label, listed in points.items()}


def _best(grid: dict[str, list[tuple[Values, Values]]]) -> dict[str, tuple[Values, Values]]:
    """The point of each method that reaches the target first; the most accurate if none does."""

    def key(pair: tuple[Values, Values]) -> tuple[float, float]:
        seconds = pair[1]["target_seconds"]
        return (float("inf") if seconds is None else seconds, -pair[1]["accuracy"])

    return {label: min(pairs, key=key) for label, pairs in grid.items()}


def _times(runs: list[Values], in_favour: bool = False) -> list[float]:
    """Seconds to the target; a run that did not reach it counts as never, or in its favour as at its end."""
    return [
        (run["seconds"] if in_favour else math.inf)
        if run["target_seconds"] is None
        else run["target_seconds"]
        for run in runs
    ]


def _table(scenario: str, results: dict[str, list[Values]], best: dict[str, tuple[Values, Values]]) -> Table:
    columns = ("method", "seconds to 0.88", "range", "ratio", "samples/s", "staleness", "rate, epochs")
    reference = spread(_times(results[SYNCHRONOUS], in_favour=True)).median
    rows = []
    for label, runs in results.items():
        s = spread(_times(runs, in_favour=label == SYNCHRONOUS))
        missed = sum(run["target_seconds"] is None for run in runs)
        point = best[label][0]
        chosen = f"{point['lr']:g}, {point['epochs']}"
        rate = number(spread([run["samples_per_second"] for run in runs]).median)
        stale = number(spread([run["mean_staleness"] for run in runs]).median)
        span = f"{number(s.minimum)} to {number(s.maximum)}"
        span += f", {missed} of {len(runs)} did not" if missed else ""
        rows.append((label, number(s.median), span, number(reference / s.median), rate, stale, chosen))
    return Table(scenario[0].upper() + scenario[1:], columns, rows)


def _checks(scenario: str, results: dict[str, list[Values]], judged: bool) -> list[Check]:
    middle = spread(_times(results[SYNCHRONOUS], in_favour=True)).median
    ratios = {
        label: middle / spread(_times(runs)).median for label, runs in results.items() if label != SYNCHRONOUS
    }
    asynchronous = {label: ratio for label, ratio in ratios.items() if label != BACKUP}
    best = max(asynchronous, key=asynchronous.__getitem__, default="")
    slow = SCENARIOS[scenario] is not None
    checks = []
    for label, ratio in ((best, asynchronous.get(best)), (BACKUP, ratios.get(BACKUP))):
        measured = "not reached" if not ratio else f"{number(ratio)} ({label})"
        met = ratio is not None and ratio >= TWICE if slow and judged else None
        what = "best asynchronous method" if label != BACKUP else BACKUP
        checks.append(
            Check(
                f"{scenario}: {what} over synchronous", f">= {TWICE:g}" if slow else "reported", measured, met
            )
        )
    return checks


if __name__ == "__main__":
    main()

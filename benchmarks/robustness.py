"""Noise in the place of gradients, and compressed gradients: accuracy on the simulator.

Targets: with a tenth of the pushes replaced by noise of a hundred times their size, robust rules end within
one point of the clean run and plain averaging does not; top-k at 1 % with error feedback, and 8 bits, end
within one point of uncompressed.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Store, Values, measure
from benchmarks.reporting import Check, Report
from benchmarks.simulated_accuracy import points, table_of

WITHIN_POINTS = 1.0
COMPRESSED_SEEDS = 3
CLEAN, PLAIN = "clean, average(8)", "noise, average(8)"
ROBUST = ("median(8)", "trimmed_mean(8, 2)", "krum(8, 2, select=4)")
REJECTING = "noise, reject_outliers, no aggregation"
CLEAN_ASYNCHRONOUS = "clean, no aggregation"
SMALL, CLEAN_SMALL = "noise, median(8), batch 16", "clean, average(8), batch 16"
METHOD = """
Test accuracy of an MLP (784-256-10) on Fashion-MNIST, eight workers of equal speed on the simulator,
learning rate annealed, no momentum unless stated. Pairs of runs share first weights, order of the data and
times. A push is replaced, with probability 0.1, by noise in a random direction and of 100 times its norm.

Rules that gather eight pushes (batch 64 a worker, 8 epochs, rate 0.25, the best of 0.1, 0.25 and 0.5 for
the clean run) are compared with the clean run of `average(8)`; `reject_outliers` acts on single pushes
(batch 16, 2 epochs, rate 0.05) and is compared with its clean twin. Of eight pushes, three or more are
noise in 4 % of the cases, and four or more in 0.5 %.

The pair at batch 16 (2 epochs, rate 0.05, momentum 0.9) is not judged. It shows a limit: half of a
network's gradients are zeros at so small a batch, towards which a median by coordinates is drawn.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 5, argv)
    environment = harness.environment()
    found = harness.data_at_hand()
    base: Values = {"model": "mlp", "data": found["data"], "workers": 8}
    base |= {"step_s": 0.01, "sigma": 0.2, "method": "stale_synchronous", "options": {"bound": 10**6}}
    if options.quick:
        base |= {"limit": 3200, "test_limit": 500}
    folder = harness.folder_of(options)
    store = Store(folder / "robustness.unfinished.jsonl")
    results = measure(_contestants(base), harness.repeats_of(options), store)
    judged = found["data"] == "fashion-mnist"
    checks = _checks(results, judged)
    title = "Noise in the place of gradients: accuracy on the simulator"
    report = Report(
        "robustness",
        title,
        METHOD,
        environment,
        base,
        [table_of(results)],
        checks,
        results,
        options.quick,
        timed=False,
    )
    reporting.publish(report, folder)
    store.clear()
    return report


def _contestants(base: Values) -> list[Contestant]:
    gathered = {**base, "batch_size": 64, "lr": 0.25, "epochs": 8}
    single = {**base, "batch_size": 16, "lr": 0.05, "epochs": 2}
    small = {**single, "momentum": 0.9}
    settings = {
        CLEAN: {**gathered, "robust": "average(8)"},
        PLAIN: {**gathered, "robust": "average(8)", "corrupt": 0.1},
        **{f"noise, {name}": {**gathered, "robust": name, "corrupt": 0.1} for name in ROBUST},
        CLEAN_ASYNCHRONOUS: {**single, "robust": "none"},
        REJECTING: {**single, "robust": "reject_outliers", "corrupt": 0.1},
        CLEAN_SMALL: {**small, "robust": "average(8)"},
        SMALL: {**small, "robust": "median(8)", "corrupt": 0.1},
    }
    return [Contestant(label, "simulate", 1, values) for label, values in settings.items()]


def _checks(results: dict[str, list[Values]], judged: bool) -> list[Check]:
    checks = []
    pairs = [(f"noise, {name}", CLEAN) for name in ROBUST] + [(REJECTING, CLEAN_ASYNCHRONOUS)]
    for label, reference in pairs:
        mean, text = points(results, label, reference)
        met = mean >= -WITHIN_POINTS if judged else None
        checks.append(Check(f"{label} - {reference}, points", f">= {-WITHIN_POINTS:g}", text, met))
    mean, text = points(results, PLAIN, CLEAN)
    met = mean < -WITHIN_POINTS if judged else None
    checks.append(Check(f"{PLAIN} - {CLEAN}, points", f"< {-WITHIN_POINTS:g}", text, met))
    return checks


if __name__ == "__main__":
    main()

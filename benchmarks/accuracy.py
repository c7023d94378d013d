"""Accuracy of Hogwild! on two workers against synchronous training with the same number of samples.

Target: within 0.5 points, and at least 0.895 for both: CNN, three epochs of full Fashion-MNIST, the library's
own defaults, paired over five seeds. An interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Store, Values, measure
from benchmarks.reporting import Check, Report, Table
from benchmarks.stats import mean_interval, spread

WITHIN_POINTS, FLOOR = 0.5, 0.895
HOGWILD, SYNCHRONOUS = "Hogwild!, 2 workers", "synchronous, 1 worker"
METHOD = """
Test accuracy after the same number of samples, each run in a fresh process. Held equal within a pair: the
model's first weights, the seed of the order of the data, batch size, number of samples, and everything else
that is not the method. Settings are the library's defaults; both methods' are listed below. Synchronous
training is one worker with one intra-op thread: more would change the speed and the rounding only, and speed
is not what is measured here. The difference is taken seed by seed; its interval is Student's for paired
differences. Training of Hogwild! is not reproducible bit for bit: its differences have the spread of its
races in them.

The accuracy is on the test images, at the end: no run was chosen by it.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 5, argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    found = harness.data_at_hand()
    settings = _settings(options, found)
    folder = harness.folder_of(options)
    store = Store(folder / "accuracy.unfinished.jsonl")
    contestants = [
        Contestant(HOGWILD, "train", 2, {**settings, "method": "hogwild", "workers": 2}),
        Contestant(
            SYNCHRONOUS,
            "train",
            1,
            {**settings, "method": "synchronous", "workers": 1, "intra_op_threads": 1},
        ),
    ]
    repeats = harness.repeats_of(options)
    results = measure(contestants, repeats, store)
    judged = found["data"] == "fashion-mnist" and not options.quick
    shown = {**settings, "seeds": repeats, **{label: runs[0]["rule"] for label, runs in results.items()}}
    title = "Accuracy with the same number of samples"
    tables, checks = _tables(results), _checks(results, judged)
    report = Report("accuracy", title, METHOD, environment, shown, tables, checks, results, options.quick)
    reporting.publish(report, folder)
    store.clear()
    return report


def _settings(options: argparse.Namespace, found: Values) -> Values:
    settings = {"model": "cnn", "epochs": 3, "data": found["data"]}
    return {**settings, "epochs": 1, "limit": 640, "test_limit": 500} if options.quick else settings


def _checks(results: dict[str, list[Values]], judged: bool) -> list[Check]:
    ours, theirs = ([run["accuracy"] for run in results[label]] for label in (HOGWILD, SYNCHRONOUS))
    points = [100 * (a - b) for a, b in zip(ours, theirs, strict=True)]
    difference, measured = fmean(points), f"{fmean(points):+.2f}"
    if len(points) > 1:
        low, high, _ = mean_interval(points)
        measured += f" (95 % interval {low:+.2f} to {high:+.2f})"
    what = f"{HOGWILD} - {SYNCHRONOUS}, points"
    met = difference >= -WITHIN_POINTS if judged else None
    checks = [Check(what, f">= {-WITHIN_POINTS}", measured, met)]
    for label, values in ((HOGWILD, ours), (SYNCHRONOUS, theirs)):
        s = spread(values)
        measured = f"{fmean(values):.4f} ({s.minimum:.4f} to {s.maximum:.4f})"
        met = fmean(values) >= FLOOR if judged else None
        checks.append(Check(f"{label}: mean test accuracy", f">= {FLOOR}", measured, met))
    return checks


def _tables(results: dict[str, list[Values]]) -> list[Table]:
    rows = []
    for seed, pair in enumerate(zip(results[HOGWILD], results[SYNCHRONOUS], strict=True)):
        ours, theirs = pair
        points = 100 * (ours["accuracy"] - theirs["accuracy"])
        seconds = (f"{ours['seconds']:.1f}", f"{theirs['seconds']:.1f}")
        rows.append(
            (str(seed), f"{ours['accuracy']:.4f}", f"{theirs['accuracy']:.4f}", f"{points:+.2f}", *seconds)
        )
    columns = ("seed", "Hogwild!", "synchronous", "points", "Hogwild!, seconds", "synchronous, seconds")
    return [Table("Every seed", columns, rows)]


if __name__ == "__main__":
    main()

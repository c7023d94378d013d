"""Training in a storm: workers are killed, crash, raise, and push what is not finite or comes twice.

Targets: accuracy within 1 point of the same runs left alone (paired seeds); every fault that was to happen
happened; the ledger adds up; a worker killed every second for a minute does not stop progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, Table, number
from benchmarks.stats import mean_interval

WITHIN_POINTS = 1.0
KINDS = ("kill", "segfault", "leave", "fail", "nan", "duplicate", "stale")
METHODS = ("hogwild", "stale_synchronous", "synchronous")
MINUTE = "a worker killed every second for a minute"
METHOD = """
Fashion-MNIST, the MLP (784-256-10), batch 16, two workers in processes, rule chain(finite(),
sgd(annealed(0.02), momentum 0.9)). In a storm, a random worker suffers a random fault every second: its
process is ended by SIGKILL or SIGSEGV, or exits; its step raises; its gradient is NaN; its push comes twice,
or its first push again. Each run in a fresh process; a pair has the same first weights and the same order of
the data. The difference is taken seed by seed; its interval is Student's. Beside that, a run of Hogwild! of
one minute in which a worker is killed every second.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 3, argv)
    environment = harness.environment()
    found = harness.data_at_hand()
    quick, repeats = options.quick, harness.repeats_of(options)
    shared: Values = {
        "model": "mlp",
        "data": found["data"],
        "epochs": 1 if quick else 8,
        "limit": 2_000 if quick else None,
        "test_limit": 500 if quick else None,
        "every_s": 0.2 if quick else 1.0,
    }
    pairs = [
        Contestant(_label(method, stormy), "soak", 2, {**shared, "method": method, "kinds": KINDS * stormy})
        for method in METHODS
        for stormy in (False, True)
    ]
    results = measure(pairs, repeats)
    seconds = 3.0 if quick else 60.0
    minute = {**shared, "method": "hogwild", "kinds": ("kill",), "epochs": None, "max_seconds": seconds}
    results[MINUTE] = [harness.fresh_process(Contestant(MINUTE, "soak", 2, minute), 0)]
    checks = [*_accuracy(results, not quick), *_books(results), *_progress(results[MINUTE][0])]
    shown = {**shared, "seeds": repeats, "kinds": ", ".join(KINDS)}
    title = "Training in a storm"
    report = Report(
        "soak", title, METHOD, environment, shown, [_table(results)], checks, results, quick, timed=False
    )
    return reporting.publish(report, harness.folder_of(options))


def _label(method: str, stormy: bool) -> str:
    return f"{method}, {'in a storm' if stormy else 'left alone'}"


def _accuracy(results: dict[str, list[Values]], judged: bool) -> list[Check]:
    checks = []
    for method in METHODS:
        stormy, alone = (results[_label(method, storm)] for storm in (True, False))
        points = [100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(stormy, alone, strict=True)]
        measured = f"{fmean(points):+.2f}"
        if len(points) > 1:
            low, high, _ = mean_interval(points)
            measured += f" (95 % interval {low:+.2f} to {high:+.2f})"
        met = fmean(points) >= -WITHIN_POINTS if judged else None
        checks.append(
            Check(f"{method}: in a storm - left alone, points", f">= {-WITHIN_POINTS:g}", measured, met)
        )
    return checks


def _books(results: dict[str, list[Values]]) -> list[Check]:
    runs = [run for found in results.values() for run in found]
    wrong = sum(not _adds_up(run["ledger"]) for run in runs)
    short = sum(run["samples"] < run["planned"] for run in runs)
    left = sum(run["left"] for run in runs)
    return [
        Check("runs whose ledger does not add up", "0", f"{wrong} of {len(runs)}", not wrong),
        Check("runs that used less than their data", "0", f"{short} of {len(runs)}", not short),
        Check("worker processes left behind", "0", str(left), not left),
    ]


def _adds_up(ledger: Values) -> bool:
    dropped = sum(ledger["dropped"].values())
    return bool(ledger["pushed"] == ledger["applied"] + ledger["absorbed"] + ledger["pending"] + dropped)


def _progress(run: Values) -> list[Check]:
    rate, before = run["samples"] / run["seconds"], run["first_rate"]
    return [
        Check(f"{MINUTE}: restarts", ">= 1 a second", f"{run['restarts']} in {run['seconds']:.0f} s", None),
        Check(f"{MINUTE}: samples/s over those of the first second", "> 0", number(rate / before), rate > 0),
    ]


def _table(results: dict[str, list[Values]]) -> Table:
    rows = [
        (
            label,
            str(seed),
            f"{run['accuracy']:.4f}",
            str(run["fired"]),
            str(run["restarts"]),
            f"{run['seconds']:.1f}",
            f"{run['samples']:,}",
        )
        for label, runs in results.items()
        for seed, run in enumerate(runs)
    ]
    return Table("Every run", ("run", "seed", "accuracy", "faults", "restarts", "seconds", "samples"), rows)


if __name__ == "__main__":
    main()

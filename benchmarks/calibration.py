"""Whether a simulation with measured times predicts real runs: throughput, staleness, samples to a target.

Targets, for one and two workers, Hogwild! and stale synchronous, MLP and CNN: throughput and mean staleness
within 15 %, and overlapping intervals of samples to target over five seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, Table, number
from benchmarks.stats import Interval, mean_interval, median_interval, spread

WITHIN = 0.15
MODELS = {"mlp": 0.8, "cnn": 0.8}  # with the accuracy of samples-to-target
METHODS = ("hogwild", "stale_synchronous")
METHOD = """
Each round of a case is one fresh process: a warm-up, and then by turns a real run on threads, a calibration
of as many workers by `freewheel.calibrate`, and a simulation with the measured times
(`calibration.engine(workers)`), which trains the same model on the same data. The ratio is the simulated
samples per second over the real ones; `real again` is the later half of the real runs over the earlier half:
what the machine itself differs by meanwhile, which no prediction can beat. Hogwild! is simulated with steps
measured on the live weights, stale synchronous with steps measured on copies of them. Batch 16, learning rate
0.01.

Mean staleness is the mean over all runs of a case. Two threads fall into step with one another for
hundreds of steps, by chance and by what else the machine does, and then their updates, which overlap, do not
see each other: single runs differ by many times, as the columns show, so there are many of them.

Samples to target: examples until the accuracy, by a straight line between evaluations, for each of the seeds
in a process of its own, real and simulated; the intervals are Student's of the mean.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 5, argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    quick = options.quick
    shared = {
        "seconds": 0.6 if quick else 2.0,
        "warmup_seconds": 0.1 if quick else 1.0,
        "turns": 2,
        "turns_of_two": 2 if quick else 8,
        "simulated_samples": 1_000 if quick else 4_000,
        "max_samples": 1_000 if quick else 12_000,
        "test_limit": 500 if quick else 2_000,
        "evaluate_every": 500,
        "batch_size": 16,
        "data": harness.data_at_hand()["data"],
    }
    repeats = harness.repeats_of(options)
    results = measure(_speeds(shared) + _targets(shared), repeats)
    tables, checks = _agreement(results)
    more_tables, more_checks = _reached(results)
    settings = {**shared, "repeats": repeats}
    title = "Simulated with measured times, against real"
    report = Report(
        "calibration",
        title,
        METHOD,
        environment,
        settings,
        tables + more_tables,
        checks + more_checks,
        results,
        quick,
    )
    return reporting.publish(report, harness.folder_of(options))


def _case(model: str, method: str, workers: int) -> str:
    return f"{model.upper()}, {method}, {workers} worker{'s' * (workers > 1)}"


def _cases() -> list[tuple[str, str, int]]:
    return [(model, method, workers) for model in MODELS for method in METHODS for workers in (1, 2)]


def _speeds(shared: Values) -> list[Contestant]:
    return [
        Contestant(
            _case(model, method, workers),
            "agreement",
            1,
            {
                **shared,
                "model": model,
                "method": method,
                "workers": workers,
                "turns": shared["turns"] if workers == 1 else shared["turns_of_two"],
            },
        )
        for model, method, workers in _cases()
    ]


def _targets(shared: Values) -> list[Contestant]:
    made = []
    for model, method, workers in _cases():
        if workers == 1:
            continue  # the same weights, bit for bit
        own = {**shared, "model": model, "method": method, "workers": workers, "target": MODELS[model]}
        for kind in ("real", "simulated"):
            label = f"{_case(model, method, workers)}, {kind}"
            settings = {**own, "simulated": kind == "simulated"}
            made.append(Contestant(label, "samples_to_target", 1, settings))
    return made


def _agreement(results: dict[str, list[Values]]) -> tuple[list[Table], list[Check]]:
    rows, checks = [], []
    for case in (_case(*one) for one in _cases()):
        runs = results[case]
        ratios = [run["simulated"] / run["real"] for run in runs]
        again = spread([run["real_again"] for run in runs])
        real, found, simulated = (
            fmean(run[f"{kind}_staleness"] for run in runs) for kind in ("real", "calibrated", "simulated")
        )
        least = min(run["least_real_staleness"] for run in runs)
        most = max(run["most_real_staleness"] for run in runs)
        middle = spread(ratios).median
        rows.append(
            (
                case,
                number(middle),
                _span(median_interval(ratios)),
                f"{number(again.minimum)} to {number(again.maximum)}",
                number(real),
                f"{number(least)} to {number(most)}",
                number(found),
                number(simulated),
            )
        )
        checks.append(_within(f"{case}: samples per second, simulated / real", middle))
        if real:
            checks.append(_within(f"{case}: mean staleness, simulated / real", simulated / real))
    head = (
        "case",
        "simulated / real",
        "interval",
        "real again",
        "staleness, real",
        "of single runs",
        "calibrated",
        "simulated",
    )
    return [Table("Throughput and staleness", head, rows)], checks


def _within(what: str, ratio: float) -> Check:
    target = f"{1 - WITHIN:g} to {1 + WITHIN:g}"
    return Check(what, target, number(ratio), abs(ratio - 1) <= WITHIN)


def _reached(results: dict[str, list[Values]]) -> tuple[list[Table], list[Check]]:
    rows, checks = [], []
    for case in (_case(*one) for one in _cases() if one[2] > 1):
        found = {}
        for kind in ("real", "simulated"):
            samples = [run["samples"] for run in results[f"{case}, {kind}"] if run["samples"] is not None]
            if len(samples) >= 2:
                found[kind] = mean_interval(samples)
            shown = _span(found[kind]) if kind in found else "too few"
            rows.append((f"{case}, {kind}", str(len(samples)), shown))
        if len(found) == 2:
            a, b = found["real"], found["simulated"]
            overlap = a.low <= b.high and b.low <= a.high
            words = f"{_span(a)} and {_span(b)}"
            checks.append(Check(f"{case}: samples to target", "intervals overlap", words, overlap))
    return [
        Table("Samples to target", ("case", "seeds that reached it", "interval of the mean"), rows)
    ], checks


def _span(interval: Interval) -> str:
    return f"{number(interval.low)} to {number(interval.high)}"


if __name__ == "__main__":
    main()

"""What ``fit`` costs on one worker, against a hand-written PyTorch loop.

Target: 0.95 or more of the loop's samples per second, as a lower 95 % bound, from batch 16 upwards.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values
from benchmarks.reporting import Check, Report, Table, number, with_interval
from benchmarks.stats import median_lower_bound, paired_ratios, spread

TARGET = 0.95
ENGINES = ("threads", "serial")
CASES = (("mlp", 16), ("mlp", 64), ("cnn", 16))
BARE, FUSED, CONTIGUOUS = "bare loop", "bare loop, fused optimizer", "bare loop, contiguous"
METHOD = """
Samples per second of `freewheel.fit` on one worker over those of a loop that a user writes by hand with
`torch.optim.SGD`. Held equal: model and its first weights, images in memory (float32), batch size, learning
rate 0.01 and momentum 0.9, a new permutation every epoch, `index_select`, one intra-op thread, the loss read
at every step, the number of samples. Convolutions are channels_last on both sides (the library chooses that
by itself). Only the training itself is timed on either side; what `fit` takes before and after is in a table
of its own.

All variants of a case take turns in one process, in slices of about a second and in a random order within
each round; the ratio is formed within a round. In one process, because thirty pairs of fresh ones would take
an hour and the neighbouring slices of a pair see the same machine; each case has a process of its own, and
every variant a warm-up.

The target is judged against the ordinary loop. Ratios to a loop with PyTorch's fused optimizer, which few
people turn on, are given too: the library uses such kernels itself, and without that line the comparison
would flatter it.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    parser = harness.parser(__doc__, 30)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES, help="default: both")
    options = parser.parse_args(argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    settings = _settings(options)
    results: dict[str, Values] = {}
    for model, batch in CASES:
        case = f"{model.upper()}, batch {batch}"
        arguments = {
            **settings,
            "model": model,
            "batch_size": batch,
            "variants": _variants(model, options.engines),
        }
        harness.say(f"{case}: {settings['rounds']} rounds")
        results[case] = harness.fresh_process(Contestant(case, "slices", 1, arguments), 0)
    tables, checks = [], []
    for case, values in results.items():
        tables += _tables(case, values)
        checks += _checks(case, values["rates"])
    title = "Overhead on one worker"
    report = Report("overhead", title, METHOD, environment, settings, tables, checks, results, options.quick)
    return reporting.publish(report, harness.folder_of(options))


def _settings(options: argparse.Namespace) -> Values:
    return {
        "rounds": harness.repeats_of(options),
        "slice_seconds": 0.05 if options.quick else 1.0,
        "warmup_seconds": 0.05 if options.quick else 2.0,
        "data": harness.data_at_hand()["data"],
    }


def _variants(model: str, engines: Sequence[str]) -> list[dict[str, Any]]:
    last = model == "cnn"
    loops: list[dict[str, Any]] = [
        {"label": BARE, "kind": "bare", "channels_last": last},
        {"label": FUSED, "kind": "bare", "channels_last": last, "optimizer": "fused"},
    ]
    if last:
        loops.append({"label": CONTIGUOUS, "kind": "bare", "channels_last": False})
    fits = [
        {"label": f"fit, {method}, {engine}", "kind": "fit", "method": method, "engine": engine}
        for method in ("hogwild", "synchronous")
        for engine in engines
    ]
    return loops + fits


def _checks(case: str, rates: dict[str, list[float]]) -> list[Check]:
    checks = []
    for label in (label for label in rates if label.startswith("fit")):
        ratios = paired_ratios(rates[label], rates[BARE])
        bound = median_lower_bound(ratios)
        measured = with_interval(spread(ratios).median, bound)
        checks.append(Check(f"{case}: {label} / {BARE}", f"bound >= {TARGET}", measured, bound.low >= TARGET))
    return checks


def _tables(case: str, values: Values) -> list[Table]:
    rates, around = values["rates"], values["seconds_around_training"]
    rows = []
    for label, measured in rates.items():
        cells = [label, number(spread(measured).median)]
        for loop in (BARE, FUSED):
            ratios = paired_ratios(measured, rates[loop])
            cells.append(with_interval(spread(ratios).median, median_lower_bound(ratios)))
        rows.append((*cells, f"{around[label]:.3f}" if label.startswith("fit") else "-"))
    columns = ("variant", "median samples/s", f"/ {BARE}", f"/ {FUSED}", "seconds before and after training")
    return [Table(case, columns, rows)]


if __name__ == "__main__":
    main()

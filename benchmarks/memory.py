"""Memory: gradients with updates per layer, and eight workers on threads against eight processes of DDP.

Targets: with ``granularity="layer"`` the gradients of a deep MLP take about as much as its largest layer at
their peak; eight workers take less memory than DistributedDataParallel with eight processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, Table, rates
from benchmarks.stats import median_interval, paired_ratios, spread

MIB = 2**20
ABOUT = 1.25  # "about its largest layer": at most this much
VARIANTS = {
    "plain": "plain loss.backward()",
    "model": 'fit, granularity="model"',
    "layer": 'fit, granularity="layer"',
}
METHOD = """
**Gradients.** A deep MLP (784, 12 x 1024, 10), batch 32, one worker on the serial engine, learning rate and
momentum equal. Two instruments. (1) A dispatch mode that sees every operation of the thread counts living
gradients: storages of the size of a weight that were allocated inside a backward pass, from their allocation
until they are freed, whoever holds them; over the training alone, and over the whole call, which with `fit`
has its check of the first batch in it. (2) PyTorch's profiler: the peak of all bytes allocated since the
block began and not yet freed; this has activations in it, and the optimizer's momentum. What `fit` allocates
for itself (one flat vector of weights and its momentum, both made inside the block) counts in the profiler's
figure, while the plain loop brings its weights along: compare "model" and "layer" there.

**Workers.** Proportional set size (PSS: a page that n processes share counts 1/n in each), summed over all
processes, its peak while training, sampled every 20 ms. Held equal: the deep MLP, batch 16 for each worker,
the same 2,048 images (in shared memory for DDP), momentum. DDP's launching process is not counted. Fresh
processes, interleaved; one intra-op thread each. Both include Python and PyTorch themselves: once for
threads, once per process for DDP (its libraries' pages are shared).
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.parser(__doc__, 3)
    options.add_argument(
        "--workers", type=int, default=None, help="workers and processes (default 8, quick 2)"
    )
    chosen = options.parse_args(argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    workers = chosen.workers or (2 if chosen.quick else 8)
    shared = _shared(chosen)
    gradients = {
        VARIANTS[variant]: harness.fresh_process(Contestant(variant, "gradient_bytes", 1, settings), 0)
        for variant in VARIANTS
        for settings in [{**shared, "variant": variant, "batch_size": 32}]
    }
    repeats = harness.repeats_of(chosen)
    resident = measure(_contestants(shared, workers), repeats)
    tables = [_gradient_table(gradients), _resident_table(resident)]
    checks = [*_gradient_checks(gradients), *_resident_checks(resident, workers)]
    settings = {**shared, "repeats": repeats, "workers": workers}
    raw = {"gradients": gradients, "resident": resident}
    report = Report("memory", "Memory", METHOD, environment, settings, tables, checks, raw, chosen.quick)
    return reporting.publish(report, harness.folder_of(chosen))


def _shared(options: argparse.Namespace) -> Values:
    return {
        "model": "784-64-64-64-10" if options.quick else "deep",
        "images": 256 if options.quick else 2048,
        "steps": 10 if options.quick else 60,
        "warmup_steps": 2 if options.quick else 10,
        "data": harness.data_at_hand()["data"],
    }


def _contestants(shared: Values, workers: int) -> list[Contestant]:
    base = {**shared, "batch_size": 16}
    many = f"{workers} worker threads"
    return [
        Contestant("freewheel, 1 worker thread", "fit_memory", 1, {**base, "workers": 1}),
        Contestant(f"freewheel, {many}", "fit_memory", workers, {**base, "workers": workers}),
        Contestant(
            f'freewheel, {many}, granularity="layer"',
            "fit_memory",
            workers,
            {**base, "workers": workers, "granularity": "layer"},
        ),
        Contestant(f"DDP, {workers} processes", "ddp_memory", 1, {**base, "processes": workers}),
        Contestant(
            f"DDP, {workers} processes, tuned", "ddp_memory", 1, {**base, "processes": workers, "tuned": True}
        ),
    ]


def _gradient_checks(gradients: dict[str, Values]) -> list[Check]:
    layer, plain = gradients[VARIANTS["layer"]], gradients[VARIANTS["plain"]]
    checks = []
    for when, key in (("while training", "training_peak_bytes"), ("in the whole call", "call_peak_bytes")):
        largest = layer[key] / layer["largest_gradient_bytes"]
        saved = plain[key] / layer[key]
        what = f'deep MLP, peak of living gradients {when}, granularity="layer"'
        checks += [
            Check(f"{what} / the largest layer", f"<= {ABOUT}", f"{largest:.2f}", largest <= ABOUT),
            Check(f"plain loss.backward() / {what}", "more than 1", f"{saved:.1f}", saved > 1),
        ]
    return checks


def _resident_checks(resident: dict[str, list[Values]], workers: int) -> list[Check]:
    bytes_of = rates(resident, "pss_bytes")
    ddp = [label for label in bytes_of if label.startswith("DDP")]
    least = min(ddp, key=lambda label: spread(bytes_of[label]).median)
    label = f"freewheel, {workers} worker threads"
    ratios = paired_ratios(bytes_of[least], bytes_of[label])
    middle = spread(ratios).median
    measured = reporting.with_interval(middle, median_interval(ratios))
    return [Check(f"deep MLP, PSS: {least} / {label}", "more than 1", measured, middle > 1)]


def _gradient_table(gradients: dict[str, Values]) -> Table:
    rows = [
        (
            label,
            f"{values['training_peak_bytes'] / MIB:.2f}",
            f"{values['call_peak_bytes'] / MIB:.2f}",
            f"{values['largest_gradient_bytes'] / MIB:.2f}",
            f"{values['weight_bytes'] / MIB:.2f}",
            f"{values['profiler_peak_bytes'] / MIB:.2f}",
        )
        for label, values in gradients.items()
    ]
    columns = ("variant", "training", "whole call", "largest gradient", "all weights", "profiler: all")
    return Table("Deep MLP, peak of living gradients, MiB", columns, rows)


def _resident_table(resident: dict[str, list[Values]]) -> Table:
    rows = []
    for label, runs in resident.items():
        pss = spread([run["pss_bytes"] / MIB for run in runs])
        uss = spread([run["uss_bytes"] / MIB for run in runs])
        span = f"{pss.minimum:,.0f} to {pss.maximum:,.0f}"
        rows.append((label, f"{pss.median:,.0f}", span, f"{uss.median:,.0f}"))
    columns = ("contestant", "PSS, median MiB", "range", "USS, median MiB")
    return Table("Deep MLP, all processes together", columns, rows)


if __name__ == "__main__":
    main()

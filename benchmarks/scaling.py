"""Two worker threads against one, against DistributedDataParallel, and against intra-op threads.

Targets on two cores: two workers / one 1.4x (MLP, batch 16), 1.6x (MLP, batch 64), 1.9x (CNN, batch 16); MLP
at batch 16 / DistributedDataParallel 3.5x; CNN at batch 16 / the better of one process with one and two
intra-op threads 1.35x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, Table, at_least, number, rates
from benchmarks.stats import spread

YARDSTICK_GFLOPS = 50.0  # a core in matrix products, as the project's targets have it
TARGETS = {"mlp-16": 1.4, "mlp-64": 1.6, "cnn-16": 1.9}
DDP_TARGET, INTRA_OP_TARGET = 3.5, 1.35
METHOD = """
Samples per second of training, medians of runs in fresh processes, interleaved in random order; every ratio
is formed within a round, and its interval is that of the median, from order statistics. Held equal: model and
first weights, images in memory (float32), batch size of each worker, learning rate 0.01, momentum 0.9
(Hogwild! would choose less on two workers; a step is the same work), a new permutation every epoch, a warm-up
before the clock starts. Thread counts are set explicitly: one intra-op thread in every worker and in every
process of DDP.

**DistributedDataParallel**: gloo over the loopback device, one process a core, images in shared memory. The
same global work means the same minibatch in every worker or process, and the rate counts the samples of all.
"batch 8 each" is the other reading, in which a round of DDP has 16 samples together; it is slower, and not
what the target is judged by. "tuned" has gradients as views of the buckets, a static graph, and the fused
optimizer. The target is judged against the fastest of them with batch 16.

**One process, intra-op threads**: the hand-written loop with one and with two threads inside PyTorch's
operations, with channels_last and without, and with the fused optimizer. The target is judged against the
fastest of all.

This compares work done per second. What the work is worth is in the pages on accuracy and on time to
accuracy.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 7, argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    shared = {
        "seconds": 0.3 if options.quick else 3.0,
        "warmup_seconds": 0.1 if options.quick else 1.5,
        "data": harness.data_at_hand()["data"],
    }
    repeats = harness.repeats_of(options)
    results = {case: measure(_contestants(case, shared), repeats) for case in TARGETS}
    size = {"size": 256 if options.quick else 1024, **shared}
    products = [
        Contestant(f"matmul, {n} threads", "matmul", n, {"intra_op_threads": n, **size}) for n in (1, 2)
    ]
    results["matmul"] = measure(products, repeats)
    operations = harness.fresh_process(Contestant("flops", "flops", 1, {"model": "cnn"}), 0)[
        "flops_per_sample"
    ]
    measured = {case: rates(found) for case, found in results.items() if case != "matmul"}
    tables = [reporting.rate_table(_title(case), found) for case, found in measured.items()]
    tables.append(_yardstick(measured["cnn-16"], rates(results["matmul"], "gflops_per_core"), operations))
    settings = {**shared, "repeats": repeats, "workers": 2, "cnn_flops_per_sample": operations}
    title = "Speed on two cores"
    report = Report(
        "scaling", title, METHOD, environment, settings, tables, _checks(measured), results, options.quick
    )
    return reporting.publish(report, harness.folder_of(options))


def _contestants(case: str, shared: Values) -> list[Contestant]:
    model, _, size = case.partition("-")
    base = {**shared, "model": model, "batch_size": int(size)}
    fits = [
        Contestant(f"freewheel, {n} worker{'s' * (n > 1)}", "fit", n, {**base, "workers": n}) for n in (1, 2)
    ]
    return [*fits, *_loops(model, base), *(_distributed(base) if case == "mlp-16" else ())]


def _loops(model: str, base: Values) -> list[Contestant]:
    found = []
    for threads in (1, 2):
        for last in (True, False) if model == "cnn" else (False,):
            for optimizer in ("default", "fused"):
                kind = ", channels_last" * last + ", fused" * (optimizer == "fused")
                options = {"intra_op_threads": threads, "channels_last": last, "optimizer": optimizer}
                label = f"plain loop, {threads} intra-op thread{'s' * (threads > 1)}{kind}"
                found.append(Contestant(label, "bare", threads, {**base, **options}))
    return found


def _distributed(base: Values) -> list[Contestant]:
    def entry(label: str, **options: Any) -> Contestant:
        return Contestant(f"DDP, 2 processes{label}", "ddp", 1, {**base, "processes": 2, **options})

    return [entry(""), entry(", tuned", tuned=True), entry(", batch 8 each", batch_size=8)]


def _checks(measured: dict[str, dict[str, list[float]]]) -> list[Check]:
    checks = []
    for case, target in TARGETS.items():
        ours = measured[case]
        what = f"{_title(case)}: two worker threads / one"
        checks.append(at_least(what, target, ours["freewheel, 2 workers"], ours["freewheel, 1 worker"]))
    for case, kind, target, note in (
        ("mlp-16", "DDP", DDP_TARGET, " (ambition 5)"),
        ("cnn-16", "plain loop", INTRA_OP_TARGET, ""),
    ):
        ours = measured[case]
        rivals = [label for label in ours if label.startswith(kind) and "batch 8" not in label]
        best = max(rivals, key=lambda label: spread(measured[case][label]).median)
        what = f"{_title(case)}: two worker threads / {best}"
        checks.append(at_least(what, target, ours["freewheel, 2 workers"], ours[best], note))
    return checks


def _yardstick(
    measured: dict[str, list[float]], products: dict[str, list[float]], operations: float
) -> Table:
    """Share of what the cores can do in matrix products."""
    one, two = (spread(products[f"matmul, {n} threads"]).median for n in (1, 2))
    rows = []
    for label, values in measured.items():
        count = 2 if "2 " in label else 1
        achieved = spread(values).median * operations / 1e9
        real = (one, two)[count - 1]
        shares = [f"{achieved / count / real:.0%}", f"{achieved / count / YARDSTICK_GFLOPS:.0%}"]
        rows.append((label, number(achieved), *shares))
    title = (
        f"CNN: share of the cores' limit ({operations / 1e6:.1f} MFLOP a sample; matrix products here reach"
        f" {one:.0f} GFLOP/s on one core and {two:.0f} on each of two)"
    )
    return Table(title, ("contestant", "GFLOP/s", "of what was measured", "of 50 GFLOP/s a core"), rows)


def _title(case: str) -> str:
    model, _, batch = case.partition("-")
    return f"{model.upper()}, batch {batch}"


if __name__ == "__main__":
    main()

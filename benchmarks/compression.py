"""Compressed gradients: accuracy and bytes on the simulator.

Target: top-k at 1 % with error feedback, and 8 bits, end within one point of uncompressed.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Store, Values, measure
from benchmarks.reporting import Check, Report
from benchmarks.simulated_accuracy import points, table_of

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
        "compression",
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
    single = {**base, "lr": 0.05, "momentum": 0.0}
    return [
        Contestant(f"compression: {name}", "simulate", 1, {**single, "compression": name})
        for name in (UNCOMPRESSED, *COMPRESSED)
    ]


def _checks(results: dict[str, list[Values]], judged: bool) -> list[Check]:
    reference = f"compression: {UNCOMPRESSED}"
    checks = []
    for name in COMPRESSED:
        label = f"compression: {name}"
        mean, text = points(results, label, reference)
        ratio = results[reference][0]["sent_bytes"] / results[label][0]["sent_bytes"]
        judge = judged and name in ("top_k 1 %", "eight_bit")
        target = f">= {-WITHIN_POINTS:g}" if name in ("top_k 1 %", "eight_bit") else "reported"
        what = f"{label}, {ratio:.1f} times fewer bytes, - uncompressed, points"
        checks.append(Check(what, target, text, mean >= -WITHIN_POINTS if judge else None))
    return checks


if __name__ == "__main__":
    main()

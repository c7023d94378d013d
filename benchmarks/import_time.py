"""Seconds of ``import freewheel`` against ``import torch``, each in a fresh process.

Target: at most 0.3 s more.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, number, rates, with_interval
from benchmarks.stats import median_interval, spread

TARGET_S = 0.3
MODULES = ("torch", "freewheel")
METHOD = """
Time of the import statement alone, in fresh Python processes, `import torch` and `import freewheel` in turn
after one unmeasured round that fills the caches of the disk and writes the compiled files. The difference is
formed within a round; `import freewheel` includes `import torch`.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 15, argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    contestants = [Contestant(f"import {module}", module, 1) for module in MODULES]
    for contestant in contestants:
        _import(contestant, 0)
    repeats = harness.repeats_of(options)
    results = measure(contestants, repeats, run=_import)
    seconds = rates(results, "seconds")
    extra = [
        ours - theirs for ours, theirs in zip(*(seconds[f"import {m}"] for m in MODULES[::-1]), strict=True)
    ]
    middle = spread(extra).median
    measured = f"{with_interval(middle, median_interval(extra))} s"
    checks = [Check("import freewheel - import torch", f"<= {TARGET_S} s", measured, middle <= TARGET_S)]
    tables = [reporting.rate_table("Seconds", seconds, "seconds")]
    settings = {"repeats": repeats, "difference": f"{number(middle)} s"}
    title = "Import time"
    report = Report(
        "import_time", title, METHOD, environment, settings, tables, checks, results, options.quick
    )
    return reporting.publish(report, harness.folder_of(options))


def _import(contestant: Contestant, repeat: int) -> Values:
    code = (
        "import json, time; began = time.perf_counter()\n"
        f"import {contestant.name}\n"
        "print(json.dumps({'seconds': time.perf_counter() - began}))"
    )
    return harness.python(["-c", code], contestant.threads, contestant.label)


if __name__ == "__main__":
    main()

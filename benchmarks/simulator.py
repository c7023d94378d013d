"""What the simulator and the server cost.

Targets: 1,000 workers and 250,000 complete steps of a trivial task in under 20 s; less than 10 % on top of
computing the same gradients of the example MLP in a plain loop; the server applies an SGD update of 10
million weights at 60 % or more of the speed of a bare in-place add, and allocates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, Table, number, with_interval
from benchmarks.stats import median_interval, paired_ratios, spread

SECONDS, ADDED, SHARE = 20.0, 1.10, 0.6
SIZES = [
    784 * 4096,
    4096 * 1024,
    1024 * 2048,
    1000,
    10_000_000 - 784 * 4096 - 4096 * 1024 - 1024 * 2048 - 1000,
]
NETWORKS: dict[str, Values] = {
    "no network": {},
    "with a network and a queue": {
        "latency_s": 1e-3,
        "bandwidth_bytes_per_s": 1e8,
        "shared_bytes_per_s": 1e9,
    },
}
METHOD = """
One intra-op thread throughout. Trivial task: 1,000 workers, 250,000 steps, each a pull, a computation that
does nothing, a push of four numbers, and an SGD update; with the network also their messages and the queue at
the server.

Overhead: seconds of a simulated run of the MLP (784-256-10) with eight workers, all of `fit` included, over
those of plain loops that compute the same gradients, in one process, in turn; the ratio is formed within a
round. One loop does nothing with the gradients. One applies each at once. One holds eight before it applies
the oldest, as asynchronous training by eight workers does, which costs more because a gradient has left the
cache when its turn comes. What the simulator itself adds is the difference to that one; over the first no
training whatever can stay below 1.1, for the update alone is more.

Server: one `Server.push` of a gradient in five tensors, against `add_` of one vector of the same total
length, in turn.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 5, argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    found = harness.data_at_hand()
    quick, repeats = options.quick, harness.repeats_of(options)
    steps = 5_000 if quick else 250_000
    speed = measure(
        [
            Contestant(label, "trivial", 1, {"steps": steps, "workers": 1000, "network": network})
            for label, network in NETWORKS.items()
        ],
        min(repeats, 3),
    )
    added = {
        batch: harness.fresh_process(
            Contestant(
                f"overhead, batch {batch}",
                "overhead",
                1,
                {
                    "data": found["data"],
                    "samples": 640 if quick else 40_000,
                    "batch_size": batch,
                    "workers": 8,
                    "rounds": 1 if quick else 2 * repeats,
                },
            ),
            0,
        )
        for batch in (16, 64)
    }
    applied = harness.fresh_process(
        Contestant(
            "apply", "apply", 1, {"sizes": SIZES, "rounds": 10 if quick else 100, "intra_op_threads": 1}
        ),
        0,
    )
    checks = [*_speed_checks(speed), *_overhead_checks(added), *_apply_checks(applied)]
    tables = [_speed_table(speed), _overhead_table(added)]
    settings: Values = {"steps": steps, "workers": 1000, "sizes": SIZES, "data": found["data"]}
    raw = {"speed": speed, "overhead": added, "apply": applied}
    title = "The cost of the simulator and of the server"
    report = Report("simulator", title, METHOD, environment, settings, tables, checks, raw, quick)
    return reporting.publish(report, harness.folder_of(options))


def _speed_checks(speed: dict[str, list[Values]]) -> list[Check]:
    checks = []
    for label, runs in speed.items():
        s = spread([run["seconds"] for run in runs])
        measured = f"{number(s.median)} ({number(s.minimum)} to {number(s.maximum)})"
        what = f"250,000 steps of 1,000 workers, {label}, seconds"
        checks.append(Check(what, f"< {SECONDS:g}", measured, s.median < SECONDS))
    return checks


def _overhead_checks(added: dict[int, Values]) -> list[Check]:
    checks = []
    for batch, values in added.items():
        goals = {"gradients": ADDED, "gradients and updates": None, "gradients and updates, in flight": ADDED}
        for plain, target in goals.items():
            ratios = paired_ratios(values["seconds"]["simulated"], values["seconds"][plain])
            middle = spread(ratios).median
            what = f"MLP, batch {batch}: simulated over a loop of {plain}"
            met = None if target is None else middle < target
            goal = "reported" if target is None else f"< {target:g}"
            checks.append(Check(what, goal, with_interval(middle, median_interval(ratios)), met))
    return checks


def _apply_checks(applied: Values) -> list[Check]:
    ratios = paired_ratios(applied["seconds"]["add_"], applied["seconds"]["server"])
    middle = spread(ratios).median
    allocated = applied["allocated"]
    return [
        Check(
            "server's SGD update of 10 M weights, speed over add_",
            f">= {SHARE:g}",
            with_interval(middle, median_interval(ratios)),
            middle >= SHARE,
        ),
        Check("bytes allocated by an SGD update", "0", str(allocated), allocated == 0),
    ]


def _speed_table(speed: dict[str, list[Values]]) -> Table:
    rows = [
        (
            label,
            number(run["seconds"]),
            number(run["cpu_seconds"]),
            number(1e6 * run["seconds"] / run["steps"]),
        )
        for label, runs in speed.items()
        for run in runs
    ]
    return Table("Trivial task", ("run", "seconds", "processor seconds", "microseconds a step"), rows)


def _overhead_table(added: dict[int, Values]) -> Table:
    rows = [
        (f"batch {batch}, {label}", number(spread(values).median), number(min(values)), number(max(values)))
        for batch, result in added.items()
        for label, values in result["seconds"].items()
    ]
    return Table("MLP", ("loop", "median seconds", "least", "most"), rows)


if __name__ == "__main__":
    main()

"""Workers in processes: their speed, what checkpoints and pushes cost, how soon deaths are noticed.

Targets on two cores: two processes / one 1.8x (MLP, batch 16); Downpour with a push and a pull at every step
costs at most 10 % of Hogwild!'s samples per second (CNN), checkpoints every 5 s at most 5 %; a death is
noticed within 0.5 s; SIGTERM saves a checkpoint and ends within 10 s; a run begins within a second.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import harness, reporting
from benchmarks.harness import Contestant, Values, measure
from benchmarks.reporting import Check, Report, Table, at_least, number, rates
from benchmarks.stats import median_interval, paired_ratios, spread

ENGINES = ("processes", "threads")
ONE = {"processes": "process", "threads": "thread"}
SPEEDUP, PUSHED, CHECKPOINTED = 1.8, 0.90, 0.95
NOTICED_S, ENDED_S, BEGUN_S = 0.5, 10.0, 1.0
EVERY_S = 5.0
HOGWILD, DOWNPOUR, ADAGRAD = "Hogwild!", "Downpour", "Downpour, Adagrad"
MODELS = {"mlp": "MLP", "cnn": "CNN", "deep": "12 layers of 1024"}
METHODS = ("hogwild", "stale_synchronous", "synchronous")
METHOD = """
Fresh processes, interleaved in random order; a ratio is formed within a round, and its interval is that of
the median, from order statistics. Rates are samples per second of training, by the run's clock, after a
warm-up run in the same process. Held equal: model and first weights, images in memory (float32), batch 16,
one intra-op thread in every worker, and a step's work: SGD with learning rate 0.01 and momentum 0.9.

**Downpour** pushes and fetches at every step. What the server does with a push is what Hogwild! does; with
Adagrad, which is Downpour's default, is in the table only. Two workers.

**Checkpoints**: runs of two workers with a directory, one of a pair with checkpoints every 5 s, the other
without. Writing them, beside the training, is in the time as far as it slows the training down; the one at
the end of the run is not.

**Deaths**: a random worker of two is killed by SIGKILL, again and again, each time 0.1 to 0.4 s after the one
before was replaced. Seconds from the signal to the event that tells of it, and to the one that says that
another worker is there. The target is judged by the slowest of all.

**Preemption**: SIGTERM to a training of two workers, with its evaluation on the test images to come. Seconds
until the process is gone, with a complete checkpoint. The target is judged by the slowest.

**Beginning**: a call of `fit` that ends after one step of each worker, everything included. The first call of
a program starts the server that workers are forked from, which imports PyTorch; the target is for the next.
"""


def main(argv: Sequence[str] | None = None) -> Report:
    options = harness.arguments(__doc__, 7, argv)
    environment = harness.environment()
    reporting.warn_if_busy(environment)
    quick, repeats = options.quick, harness.repeats_of(options)
    settings: Values = {
        "seconds": 0.3 if quick else 3.0,
        "warmup_seconds": 0.1 if quick else 1.5,
        "checkpoint_every": 0.3 if quick else EVERY_S,
        "checkpointed_seconds": 1.0 if quick else 4.4 * EVERY_S,
        "deaths_seconds": 3.0 if quick else 10.0,
    }
    shared = {**settings, "batch_size": 16, "data": harness.data_at_hand()["data"]}
    results = {name: measure(group, repeats) for name, group in contestants(shared).items()}
    report = Report(
        "processes",
        "Workers in processes",
        METHOD,
        environment,
        {**settings, "repeats": repeats, "workers": 2},
        tables(results),
        checks(results),
        results,
        quick,
    )
    return reporting.publish(report, harness.folder_of(options))


# --- contestants ---


def contestants(shared: Values) -> dict[str, list[Contestant]]:
    """Everybody, by what is compared."""
    return {
        "workers": _scaling(shared),
        "pushes": _pushes(shared),
        "checkpoints": _checkpoints(shared),
        "deaths": _deaths(shared),
        "preemption": _preemption(shared),
        "beginning": _beginning(shared),
    }


def _label(workers: int, engine: str) -> str:
    return f"{workers} {engine if workers > 1 else ONE[engine]}"


def _scaling(shared: Values) -> list[Contestant]:
    base = {**shared, "model": "mlp"}
    return [
        Contestant(_label(workers, engine), "fit", 1, {**base, "engine": engine, "workers": workers})
        for engine in ENGINES
        for workers in (1, 2)
    ]


def _pushes(shared: Values) -> list[Contestant]:
    base = {**shared, "model": "cnn", "workers": 2}
    variants: dict[str, Values] = {
        HOGWILD: {"method": "hogwild"},
        DOWNPOUR: {"method": "downpour"},
        ADAGRAD: {"method": "downpour", "momentum": None},
    }
    return [
        Contestant(f"{label}, {engine}", "fit", 1, {**base, **options, "engine": engine})
        for engine in ENGINES
        for label, options in variants.items()
    ]


def _checkpointed(model: str, engine: str, every_s: float | None) -> str:
    return f"{MODELS[model]}, {engine}, {'no checkpoints' if every_s is None else 'checkpoints'}"


def _checkpoints(shared: Values) -> list[Contestant]:
    base = {**shared, "seconds": shared["checkpointed_seconds"], "workers": 2}
    return [
        Contestant(
            _checkpointed(model, engine, every_s),
            "checkpointed",
            1,
            {**base, "model": model, "engine": engine, "checkpoint_every": every_s},
        )
        for model in ("mlp", "cnn")
        for engine in ENGINES
        for every_s in (None, shared["checkpoint_every"])
    ]


def _deaths(shared: Values) -> list[Contestant]:
    base = {**shared, "seconds": shared["deaths_seconds"], "model": "mlp", "workers": 2}
    return [
        Contestant(method, "deaths", 1, {**base, "method": method, "engine": "processes"})
        for method in METHODS
    ]


def _preemption(shared: Values) -> list[Contestant]:
    base = {**shared, "workers": 2}
    return [
        Contestant(f"{MODELS[model]}, {engine}", "preempted", 1, {**base, "model": model, "engine": engine})
        for model in ("mlp", "deep")
        for engine in ENGINES
    ]


def _beginning(shared: Values) -> list[Contestant]:
    base = {**shared, "model": "mlp"}
    return [
        Contestant(_label(workers, engine), "first_step", 1, {**base, "engine": engine, "workers": workers})
        for engine in ENGINES
        for workers in (1, 2)
    ]


# --- what they show ---


def checks(results: dict[str, dict[str, list[Values]]]) -> list[Check]:
    """Against the targets."""
    return [
        *_speed(rates(results["workers"])),
        *_cost_of_pushes(rates(results["pushes"])),
        *_cost_of_checkpoints(results["checkpoints"]),
        *_noticed(results["deaths"]),
        *_ended(results["preemption"]),
        *_begun(results["beginning"]),
    ]


def _speed(measured: dict[str, list[float]]) -> list[Check]:
    two, one = measured["2 processes"], measured["1 process"]
    found = [at_least("MLP, batch 16: two processes / one", SPEEDUP, two, one)]
    pairs = (("2 threads", "1 thread"), ("1 process", "1 thread"), ("2 processes", "2 threads"))
    return found + [
        _told(f"MLP, batch 16: {ours} / {theirs}", measured[ours], measured[theirs]) for ours, theirs in pairs
    ]


def _cost_of_pushes(measured: dict[str, list[float]]) -> list[Check]:
    return [
        at_least(
            f"CNN, {engine}: {DOWNPOUR}, a push and a pull at every step, / {HOGWILD}",
            PUSHED,
            measured[f"{DOWNPOUR}, {engine}"],
            measured[f"{HOGWILD}, {engine}"],
        )
        for engine in ENGINES
    ]


def _cost_of_checkpoints(results: dict[str, list[Values]]) -> list[Check]:
    measured = rates(results)
    found = []
    for model in ("mlp", "cnn"):
        for engine in ENGINES:
            label, without = (_checkpointed(model, engine, every_s) for every_s in (EVERY_S, None))
            count = min(run["checkpoints"] for run in results[label])
            what = f"{MODELS[model]}, {engine}: {count} checkpoints or more in a run / none"
            found.append(at_least(what, CHECKPOINTED, measured[label], measured[without]))
    return found


def _noticed(results: dict[str, list[Values]]) -> list[Check]:
    found = []
    for method, runs in results.items():
        seconds = [s for run in runs for s in run["noticed_s"]]
        what = f"{method}: the slowest of {len(seconds)} deaths to be noticed, seconds"
        found.append(_at_most(what, NOTICED_S, seconds))
    return found


def _ended(results: dict[str, list[Values]]) -> list[Check]:
    left = sum(run["left"] for runs in results.values() for run in runs)
    ends = [
        _at_most(
            f"{label}: checkpoint and end after SIGTERM, the slowest, seconds",
            ENDED_S,
            [run["seconds"] for run in runs],
        )
        for label, runs in results.items()
    ]
    return [*ends, Check("processes left after SIGTERM", "0", str(left), not left)]


def _begun(results: dict[str, list[Values]]) -> list[Check]:
    seconds = [run["next_s"] for run in results["2 processes"]]
    middle = spread(seconds).median
    measured = reporting.with_interval(middle, median_interval(seconds))
    what = "two processes, the next run of a program: a call of one step, seconds"
    return [Check(what, f"< {BEGUN_S:g}", measured, middle < BEGUN_S)]


def _at_most(what: str, limit: float, values: Sequence[float]) -> Check:
    """Judged by the greatest; nothing is met where nothing happened."""
    if not values:
        return Check(what, f"< {limit:g}", "none happened", False)
    return Check(what, f"< {limit:g}", number(max(values)), max(values) < limit)


def _told(what: str, ours: Sequence[float], theirs: Sequence[float]) -> Check:
    ratios = paired_ratios(ours, theirs)
    measured = reporting.with_interval(spread(ratios).median, median_interval(ratios))
    return Check(what, "reported", measured, None)


def tables(results: dict[str, dict[str, list[Values]]]) -> list[Table]:
    """For people."""
    return [
        reporting.rate_table("MLP, batch 16", rates(results["workers"])),
        reporting.rate_table("CNN, batch 16, two workers", rates(results["pushes"])),
        reporting.rate_table("Two workers, with checkpoints and without", rates(results["checkpoints"])),
        _written(results["checkpoints"]),
        _seconds("Seconds from a death until", results["deaths"], ("noticed_s", "replaced_s")),
        _seconds("Seconds from SIGTERM to the end", results["preemption"], ("seconds",)),
        _seconds("Seconds of a run of one step", results["beginning"], ("first_s", "next_s")),
    ]


def _written(results: dict[str, list[Values]]) -> Table:
    rows = []
    for label, runs in results.items():
        if seconds := [s for run in runs for s in run["write_seconds"]]:
            size = max(run["bytes"] for run in runs)
            rows.append((label, f"{size / 2**20:.1f}", number(spread(seconds).median), number(max(seconds))))
    return Table("Writing a checkpoint", ("run", "MiB", "median seconds", "slowest"), rows)


def _seconds(title: str, results: dict[str, list[Values]], names: Sequence[str]) -> Table:
    """Median and slowest of what was measured once or several times a run."""
    rows = []
    for label, runs in results.items():
        for name in names:
            values = [s for run in runs for s in (run[name] if isinstance(run[name], list) else [run[name]])]
            if values:
                middle, most = spread(values).median, max(values)
                rows.append((label, name.removesuffix("_s"), number(middle), number(most), str(len(values))))
    return Table(title, ("run", "until", "median", "slowest", "times"), rows)


if __name__ == "__main__":
    main()

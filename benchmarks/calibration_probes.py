"""Real and simulated runs of the same model, by turns, in one process."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from torch import nn

import freewheel
from benchmarks import workloads
from benchmarks.contestants import Settings, Values
from benchmarks.workloads import LR, MOMENTUM, Pair
from freewheel.advice import crossing
from freewheel.events import Evaluated

METHODS: dict[str, Any] = {"hogwild": freewheel.hogwild, "stale_synchronous": freewheel.stale_synchronous}


def agreement(settings: Settings) -> Values:
    """Throughput and mean staleness of real runs, and of simulations with times measured between them."""
    data = workloads.tensors(settings["data"], "train")
    seconds, workers, turns = settings["seconds"], settings["workers"], settings["turns"]
    real, simulated, found = [], [], []
    _fit(settings, data, max_seconds=settings["warmup_seconds"])
    for _ in range(turns):
        real.append(_fit(settings, data, max_seconds=seconds))
        calibration = calibrated(settings, data, seconds)
        samples = min(real[-1].samples, settings["simulated_samples"])
        simulated.append(_fit(settings, data, engine=calibration.engine(workers), max_samples=samples))
        found.append(calibration.at(workers).mean_staleness)
    half = turns // 2
    return {
        "real": _throughput(real),
        "simulated": _throughput(simulated),
        "real_again": _throughput(real[half:]) / _throughput(real[:half]),
        "real_staleness": fmean(run.mean_staleness for run in real),
        "calibrated_staleness": fmean(found),
        "simulated_staleness": fmean(run.mean_staleness for run in simulated),
        "least_real_staleness": min(run.mean_staleness for run in real),
        "most_real_staleness": max(run.mean_staleness for run in real),
    }


def _throughput(runs: list[freewheel.Result]) -> float:
    return sum(run.samples for run in runs) / sum(run.seconds for run in runs)


def samples_to_target(settings: Settings) -> Values:
    """Examples until an accuracy, on threads or simulated with measured times."""
    data = workloads.tensors(settings["data"], "train")
    test = workloads.tensors(settings["data"], "test", settings["test_limit"])
    engine: Any = "threads"
    if settings["simulated"]:
        engine = calibrated(settings, data, settings["seconds"]).engine(settings["workers"])
    result = _fit(
        settings,
        data,
        engine=engine,
        max_samples=settings["max_samples"],
        evaluate=test,
        evaluate_every=settings["evaluate_every"],
    )
    by_samples = [
        Evaluated(float(one.samples), one.samples, one.epoch, one.metrics) for one in result.history
    ]
    return {"samples": crossing(by_samples, "accuracy", settings["target"], False)}


def calibrated(settings: Settings, data: Pair, seconds: float) -> freewheel.Calibration:
    """The times of the steps that the method takes: on the live weights, or on copies."""
    live = freewheel.hogwild(1e-6, MOMENTUM) if settings["method"] == "hogwild" else None
    return freewheel.calibrate(
        workloads.build(settings["model"], settings["seed"]),
        data,
        loss=nn.CrossEntropyLoss(),
        batch_size=settings["batch_size"],
        workers=(settings["workers"],),
        seconds=seconds,
        method=live,
    )


def _fit(settings: Settings, data: Pair, **more: Any) -> freewheel.Result:
    return freewheel.fit(
        workloads.build(settings["model"], settings["seed"]),
        data,
        loss=nn.CrossEntropyLoss(),
        method=METHODS[settings["method"]](lr=LR),
        workers=settings["workers"],
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        **more,
    )

"""Real and simulated runs of the same model, by turns, in one process."""

from __future__ import annotations

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
    """Throughput and mean staleness of real runs, and of one simulated with times measured between them."""
    data = workloads.tensors(settings["data"], "train")
    seconds, workers = settings["seconds"], settings["workers"]
    real = []
    _fit(settings, data, max_seconds=settings["warmup_seconds"])
    for turn in range(2):
        real.append(_fit(settings, data, max_seconds=seconds))
        if not turn:
            engine = calibrated(settings, data, seconds).engine(workers)
    samples = min(sum(run.samples for run in real), settings["simulated_samples"])
    predicted = _fit(settings, data, engine=engine, max_samples=samples)
    updates = sum(sum(run.staleness.values()) for run in real)
    late = sum(age * count for run in real for age, count in run.staleness.items())
    return {
        "real": sum(run.samples for run in real) / sum(run.seconds for run in real),
        "simulated": predicted.samples_per_second,
        "real_again": real[1].samples_per_second / real[0].samples_per_second,
        "real_staleness": late / updates,
        "simulated_staleness": predicted.mean_staleness,
    }


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

"""Recorded runs made by a formula, for the tests of reports and monitors."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from freewheel.events import Evaluated, Event, RunFinished, RunStarted, Tick, Traffic

CONFIG: dict[str, Any] = {
    "model": "cnn",
    "data": "fashion-mnist-10k",
    "lr": 0.05,
    "momentum": 0.8,
    "granularity": "model",
    "channels_last": True,
    "versions": {"freewheel": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
    "machine": {"processor": "Example CPU", "cores": 2, "memory": "16 GiB"},
}


def started(method: str = "hogwild", workers: int = 2, seed: int = 0, **changes: Any) -> RunStarted:
    values: dict[str, Any] = {
        "engine": "threads",
        "batch_size": 16,
        "planned_samples": 30_000,
        "max_seconds": None,
        "trainable": 421_642,
        "target": ("accuracy", 0.88),
        "config": CONFIG,
    }
    return RunStarted(method=method, workers=workers, seed=seed, **{**values, **changes})


def finished(**changes: Any) -> RunFinished:
    values: dict[str, Any] = {
        "reason": "epochs",
        "seconds": 30.0,
        "wall_seconds": 33.0,
        "cpu_seconds": 58.0,
        "samples": 30_000,
        "steps": 1_875,
        "worker_samples": [15_008, 14_992],
        "worker_steps": [938, 937],
        "staleness": {0: 40, 1: 1_700, 2: 120, 5: 10},
        "ledger": {
            "pushed": 1_875,
            "applied": 1_870,
            "absorbed": 0,
            "pending": 0,
            "dropped": {"non-finite": 5},
        },
        "peak_rss_bytes": 520 * 2**20,
        "start_rss_bytes": 380 * 2**20,
        "metrics": {"accuracy": 0.9012, "loss": 0.2874},
        "target_seconds": 14.5,
    }
    return RunFinished(**{**values, **changes})


def events(
    method: str = "hogwild", workers: int = 2, seed: int = 0, speed: float = 1000.0, top: float = 0.905
) -> list[Event]:
    """A whole run of 30,000 samples at `speed` samples per second that approaches the accuracy `top`."""
    draw = random.Random(f"{method}-{seed}")
    speed *= 1 + draw.uniform(-0.02, 0.02)
    top += draw.uniform(-0.002, 0.002)
    seconds = 30_000 / speed
    made: list[Event] = [started(method, workers, seed)]
    samples = [0] * workers
    ticks, every = 120, 10
    for tick in range(1, ticks + 1):
        now = seconds * tick / ticks
        samples = [count + round(250 / workers * (1 + draw.uniform(-0.08, 0.08))) for count in samples]
        total = sum(samples)
        stale = 0.0 if workers == 1 else workers - 1 + draw.uniform(-0.1, 0.1)
        loss = 0.25 + 2 * math.exp(-total / 2500) + draw.uniform(0, 0.08)
        memory = round((380 + 140 * (1 - math.exp(-tick / 9)) + draw.uniform(0, 3)) * 2**20)
        made.append(Tick(now, list(samples), loss, stale, memory, now * workers * 0.97))
        if tick % every == 0:
            accuracy = top - 0.55 * math.exp(-total / 4500)
            made.append(
                Evaluated(
                    now, total, total / 10_000, {"accuracy": accuracy, "loss": 1.1 * (1 - accuracy) * 2.6}
                )
            )
    last = made[-1]
    assert isinstance(last, Evaluated)
    steps = [count // 16 for count in samples]
    staleness = (
        {0: sum(steps)}
        if workers == 1
        else {workers - 2: 60, workers - 1: sum(steps) - 260, workers: 180, workers + 3: 20}
    )
    ledger = {"pushed": sum(steps), "applied": sum(steps), "absorbed": 0, "pending": 0, "dropped": {}}
    made.append(
        finished(
            seconds=seconds, wall_seconds=seconds * 1.1, cpu_seconds=seconds * workers * 0.97,
            samples=sum(samples), steps=sum(steps), worker_samples=samples, worker_steps=steps,
            staleness=staleness,            ledger=ledger, metrics=last.metrics, target_seconds=seconds * 0.4,
        )
    )  # fmt: skip
    return made


def traffic(workers: int = 2, shards: int = 2, seconds: float = 30.0) -> Traffic:
    """Worker w computes 90 % of the time, less for later workers; the last shard is as busy as can be."""
    busy = [seconds * (0.9 - 0.6 * worker / workers) for worker in range(workers)]
    return Traffic(
        worker_bytes_sent=[(worker + 1) * 2**20 for worker in range(workers)],
        worker_bytes_received=[3 * (worker + 1) * 2**20 for worker in range(workers)],
        worker_busy_s=busy,
        shard_bytes=[2**30 + shard for shard in range(shards)],
        shard_busy_s=[seconds * (shard + 1) / shards for shard in range(shards)],
        shard_wait_s=[seconds * 2.5 * shard for shard in range(shards)],
        link_busy_s=[seconds * 0.25, seconds * 0.5],
    )


def simulated(workers: int = 2, shards: int = 2, method: str = "hogwild", seed: int = 0) -> list[Event]:
    """The same run as `events`, as a simulation would have predicted it."""
    begin, *middle, end = events(method, workers, seed)
    assert isinstance(begin, RunStarted)
    assert isinstance(end, RunFinished)
    quiet = [replace(one, rss_bytes=0, cpu_seconds=0.0) if isinstance(one, Tick) else one for one in middle]
    end = replace(end, peak_rss_bytes=0, start_rss_bytes=0, cpu_seconds=0.0, wall_seconds=7.0)
    return [replace(begin, engine="simulated"), *quiet, traffic(workers, shards, end.seconds), end]

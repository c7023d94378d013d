"""One training, in a storm or left alone."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psutil
from torch import nn

import freewheel
from benchmarks import workloads
from benchmarks.contestants import Settings, Values
from freewheel import rules
from freewheel.events import Event, Tick
from freewheel.schedules import annealed
from freewheel.testing import inject, storm

METHODS: dict[str, Any] = {
    "hogwild": freewheel.hogwild,
    "stale_synchronous": freewheel.stale_synchronous,
    "synchronous": freewheel.synchronous,
}


def soak(settings: Settings) -> Values:
    """Trains; says how well, and what happened."""
    train = workloads.tensors(settings["data"], "train", settings.get("limit"))
    test = workloads.tensors(settings["data"], "test", settings.get("test_limit"))
    events: list[Event] = []
    kinds = tuple(settings["kinds"])
    rule = rules.chain(rules.finite(), rules.sgd(annealed(0.02), 0.9))
    with ExitStack() as stack:
        injected = None
        if kinds:
            injected = stack.enter_context(inject(storm(settings["every_s"], kinds, settings["seed"])))
        result = freewheel.fit(
            workloads.build(settings["model"], settings["seed"]),
            train,
            loss=nn.CrossEntropyLoss(),
            evaluate=test,
            method=METHODS[settings["method"]](rule=rule),
            engine="processes",
            workers=2,
            batch_size=16,
            epochs=settings["epochs"],
            max_seconds=settings.get("max_seconds"),
            seed=settings["seed"],
            max_restarts=10**6,
            monitors=[events.append],
        )
        fired = len(injected.fired) if injected is not None else 0
    mine = psutil.Process()
    first = next(event for event in events if isinstance(event, Tick) and event.seconds > 0)
    return {
        "accuracy": result.metrics["accuracy"],
        "fired": fired,
        "restarts": result.restarts,
        "samples": result.samples,
        "planned": (settings["epochs"] or 0) * len(train[1]),
        "seconds": result.seconds,
        "first_rate": sum(first.samples) / first.seconds,
        "ledger": result.ledger,
        "left": sum(child.ppid() != mine.pid for child in mine.children(recursive=True)),
    }

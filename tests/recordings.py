"""Runs to record: a small network with running statistics, three workers that race."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import freewheel
from freewheel import rules
from freewheel.methods import Method

SAMPLES, WORKERS = 240, 3
Step = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]

METHODS: dict[str, Method] = {
    "stale_synchronous": freewheel.stale_synchronous(2, 0.05, momentum=0.9),
    "in-flight": freewheel.stale_synchronous(2, 0.05, momentum=0.9, in_flight=1),
    "eight-bit": freewheel.stale_synchronous(2, 0.05, compression=rules.eight_bit(16)),
    "top-k": freewheel.stale_synchronous(1, 0.05, compression=rules.top_k(0.1)),
    "guarded": freewheel.stale_synchronous(
        rule=rules.chain(rules.finite(), rules.clip(1.0), rules.expire(2), rules.adam(0.01))
    ),
    "averaged": freewheel.stale_synchronous(rule=rules.chain(rules.average(2), rules.sgd(0.05))),
    "delay_compensated": freewheel.delay_compensated(0.05, momentum=0.5),
    "adaptive": freewheel.delay_compensated(0.05, adaptive=True),
    "downpour": freewheel.downpour(0.05, 3, 2),
    "downpour-warm": freewheel.downpour(0.05, 3, 2, warm_start=3, in_flight=1, compression=rules.half()),
    "easgd": freewheel.elastic_averaging(0.05, period=3),
    "eamsgd": freewheel.elastic_averaging(0.05, period=3, momentum=0.9),
    "local_sgd": freewheel.local_sgd(0.05, 3, momentum=0.9),
    "parallel_sgd": freewheel.parallel_sgd(0.05, momentum=0.9),
    "diloco": freewheel.diloco(4),
    "diloco-synchronous": freewheel.diloco(4, asynchronous=False),
    "diloco-dynamic": freewheel.diloco(4, dynamic=True),
    "backup": freewheel.synchronous(0.05, backup_workers=1),
}


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(SAMPLES, 10, generator=generator)
    return inputs, (inputs @ torch.randn(10, 3, generator=generator)).argmax(1)


def network(seed: int = 3, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3)
    )


def meeting(barrier: threading.Barrier | None) -> Step:
    """A step whose first calls wait for each other, so that all workers have pulled before any pushes."""
    met: set[int] = set()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        thread = threading.get_ident()
        if barrier is not None and thread not in met and thread != threading.main_thread().ident:
            met.add(thread)
            barrier.wait(60)
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    return step


def record(folder: Path, method: Method, **settings: Any) -> freewheel.Result:
    """A recorded run, in which the workers meet in their first step."""
    arguments: dict[str, Any] = {
        "workers": WORKERS,
        "batch_size": 8,
        "epochs": 2,
        "evaluate": measure,
        "evaluate_every": 100,
        "run_dir": folder,
        "record": True,
        **settings,
    }
    if "step" not in arguments:
        arguments["step"] = meeting(threading.Barrier(WORKERS) if arguments["workers"] == WORKERS else None)
    model, data = arguments.pop("model", None) or network(), arguments.pop("data", blobs())
    return freewheel.fit(model, data, method=method, **arguments)


def measure(module: nn.Module) -> dict[str, float]:
    inputs, targets = blobs()
    return {"accuracy": float((module(inputs).argmax(1) == targets).float().mean())}


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}

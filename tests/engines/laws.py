"""What the laws are checked on: a small network, all methods, all engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import freewheel
from freewheel.events import Event, Steps
from freewheel.methods import Method
from freewheel.rules import (
    accumulate,
    adagrad,
    average,
    chain,
    clip,
    damp,
    eight_bit,
    expire,
    finite,
    half,
    krum,
    median,
    sgd,
    top_k,
)

ENGINES = ("serial", "threads", "processes", "simulated")
SAMPLES = 240

LIVE: dict[str, Method] = {
    "hogwild": freewheel.hogwild(0.05, momentum=0.9),
    "hogwild-layer": freewheel.hogwild(0.05, momentum=0.9, granularity="layer"),
    "hogwild-average": freewheel.hogwild(rule=chain(average(2), sgd(0.05, momentum=0.9))),
    "hogwild-damp-expire": freewheel.hogwild(rule=chain(expire(6), damp(1.0), sgd(0.05))),
    "synchronous": freewheel.synchronous(0.05),
    "synchronous-layer": freewheel.synchronous(0.05, granularity="layer"),
}
"""Workers read the live weights."""

COPIES: dict[str, Method] = {
    "synchronous-top_k": freewheel.synchronous(0.05, compression=top_k(0.25)),
    "stale_synchronous": freewheel.stale_synchronous(1, 0.05),
    "stale_synchronous-eight_bit": freewheel.stale_synchronous(1, 0.05, compression=eight_bit(64)),
    "stale_synchronous-median": freewheel.stale_synchronous(1, rule=chain(median(3), sgd(0.05))),
    "stale_synchronous-krum": freewheel.stale_synchronous(1, rule=chain(krum(5, 1), sgd(0.05))),
    "stale_synchronous-clip": freewheel.stale_synchronous(1, rule=chain(finite(), clip(1.0), sgd(0.1))),
    "delay_compensated": freewheel.delay_compensated(0.05),
    "delay_compensated-adaptive": freewheel.delay_compensated(0.05, 2.0, adaptive=True),
    "downpour": freewheel.downpour(0.05, 2, 3),
    "downpour-warm_start": freewheel.downpour(0.05, 2, 2, warm_start=5),
    "downpour-accumulate": freewheel.downpour(0.05, 2, 2, server=chain(accumulate(2), adagrad(0.05))),
    "downpour-half": freewheel.downpour(0.05, 3, 2, compression=half()),
    "elastic_averaging": freewheel.elastic_averaging(0.05, period=3),
    "elastic_averaging-momentum": freewheel.elastic_averaging(0.05, period=3, momentum=0.5),
    "local_sgd": freewheel.local_sgd(0.05, 4),
    "local_sgd-top_k": freewheel.local_sgd(0.05, 4, compression=top_k(0.25)),
    "parallel_sgd": freewheel.parallel_sgd(0.05, momentum=0.5),
    "diloco": freewheel.diloco(4),
    "diloco-synchronous": freewheel.diloco(4, asynchronous=False),
    "diloco-dynamic": freewheel.diloco(4, dynamic=True),
    "diloco-eight_bit": freewheel.diloco(4, compression=eight_bit()),
}
"""Workers have copies of the weights."""

IN_FLIGHT: dict[str, Method] = {
    "stale_synchronous-in_flight": freewheel.stale_synchronous(1, 0.05, in_flight=1),
    "downpour-in_flight": freewheel.downpour(0.05, 2, 3, in_flight=1),
}
"""Workers that go on while their push is under way."""

BACKUP: dict[str, Method] = {"synchronous-backup": freewheel.synchronous(0.05, backup_workers=1)}
"""What needs several workers."""

METHODS = {**LIVE, **COPIES, **IN_FLIGHT}
"""What one worker can run."""

ALL = {**METHODS, **BACKUP}

ROUNDS = [name for name, method in METHODS.items() if method.rounds and method.leases == "fixed"]
"""What does not depend on who is faster."""

KINDS = (
    "hogwild",
    "synchronous",
    "synchronous-backup",
    "stale_synchronous-in_flight",
    "downpour",
    "elastic_averaging",
    "parallel_sgd",
    "diloco",
)
"""One of each structure, for laws about engines."""


def most_shards(name: str) -> int:
    """Several shards, unless the method pushes layers."""
    return 1 if ALL[name].granularity == "layer" else 3


def each_with_shards(names: dict[str, Method]) -> list[tuple[str, int]]:
    """All of them on one shard, one of each structure on three."""
    return [(name, 1) for name in names] + [(name, 3) for name in names if name in KINDS]


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(SAMPLES, 10, generator=generator)
    return inputs, (inputs @ torch.randn(10, 3, generator=generator)).argmax(1)


def network(norm: bool = True, dropout: float = 0.2) -> nn.Module:
    torch.manual_seed(3)
    middle: list[nn.Module] = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(10, 16), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def state(module: nn.Module) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in module.state_dict().values()])


def floats(module: nn.Module) -> Tensor:
    """Weights and running statistics, without counters such as BatchNorm's number of batches."""
    tensors = module.state_dict().values()
    return torch.cat([tensor.detach().flatten() for tensor in tensors if tensor.is_floating_point()])


def train(module: nn.Module, method: Method, engine: Any, **settings: Any) -> freewheel.Result:
    arguments: dict[str, Any] = {"workers": 1, "batch_size": 16, "epochs": 2, **settings}
    return freewheel.fit(
        module,
        blobs(),
        loss=nn.CrossEntropyLoss(),
        method=method,
        engine=engine,
        evaluate=blobs(),
        **arguments,
    )


class Heard:
    """What is heard of a run, for who hands ``events.append`` to it as a monitor."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def leases(self) -> Counter[int]:
        """How often each lease was computed."""
        return Counter(number for event in self.of(Steps) for number in event.lease)


def leases_of(leases: Counter[int]) -> Callable[[Event], None]:
    """A monitor that counts how often each lease was computed."""

    def record(event: Event) -> None:
        if isinstance(event, Steps):
            leases.update(event.lease)

    return record


def adds_up(ledger: dict[str, Any]) -> bool:
    parts = [ledger["applied"], ledger["absorbed"], ledger["pending"], *ledger["dropped"].values()]
    return bool(ledger["pushed"] == sum(parts) and min(parts) >= 0)

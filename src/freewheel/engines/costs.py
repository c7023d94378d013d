"""What a server's push and pull cost on this machine, measured for one model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from freewheel.params import Parameters
from freewheel.rules import Rule
from freewheel.server import Server
from freewheel.update import WHOLE, Update

_REPEATS, _WARM_UP = 15, 3


class ServerSeconds(NamedTuple):
    """Seconds of one processor core.

    Attributes:
        push: to take a gradient of the whole model and apply it.
        pull: to copy all weights.
    """

    push: float
    pull: float


def server_seconds(module: nn.Module, rule: Rule) -> ServerSeconds:
    """Times a server that nobody else uses; the module's weights are left as they are.

    Args:
        module: a model; it is copied into a server of its own.
        rule: what the server does with a gradient.
    """
    parameters = Parameters(module)
    try:
        server = Server(parameters, rule, workers=1)
        target = parameters.flat.clone()
        numbers = iter(range(10**6))

        def push() -> None:
            gradients: list[torch.Tensor | None] = [
                torch.zeros_like(view) for view in parameters.trainable_views()
            ]
            update = Update(gradients, WHOLE, worker=0, sequence=next(numbers), samples=1)
            began = time.perf_counter()
            server.push(update)
            seconds.append(time.perf_counter() - began)

        seconds: list[float] = []
        for _ in range(_REPEATS):
            push()
        pushed = statistics.median(seconds[_WARM_UP:])
        return ServerSeconds(pushed, _median_of(lambda: server.pull(target)))
    finally:
        Parameters.release(module)


def _median_of(action: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[_WARM_UP:])

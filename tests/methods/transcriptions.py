"""The pseudo-code of the papers, transcribed: serial, in plain PyTorch, apart from the library.

Every function takes the flat weights, ``gradient(weights, batch)``, and either the turns of asynchronous
workers or the shares of synchronous ones, and gives the flat weights at the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from optimizers import Optimizer
from torch import Tensor
from turns import Turn, mean

Gradient = Callable[[Tensor, Any], Tensor]
Turns = Iterable[Turn]
Shares = Sequence[Sequence[Any]]


def asynchronous_sgd(w: Tensor, gradient: Gradient, turns: Turns, server: Optimizer) -> Tensor:
    """Recht et al. 2011, equation 1, on copies; Ho et al. 2013 when the turns are those of a bound."""
    computed: dict[int, Tensor] = {}
    for event, worker, batch in turns:
        if event == "start":
            computed[worker] = gradient(w, batch)
        elif event == "deliver":
            w = server(w, computed.pop(worker))
    return w


def staleness_aware(w: Tensor, gradient: Gradient, turns: Turns, rate: float, power: float = 1.0) -> Tensor:
    """Zhang et al. 2016: the rate of a gradient is divided by its staleness, where there is any."""
    computed: dict[int, tuple[Tensor, int]] = {}
    timestamp = 0
    for event, worker, batch in turns:
        if event == "start":
            computed[worker] = gradient(w, batch), timestamp
        elif event == "deliver":
            g, pulled = computed.pop(worker)
            w = w - rate / max(1, timestamp - pulled) ** power * g
            timestamp += 1
    return w


def delay_compensated(w: Tensor, gradient: Gradient, turns: Turns, rate: float, strength: float) -> Tensor:
    r"""Zheng et al. 2017, algorithms 1 and 2, constant: :math:`g + \lambda g^2 (w - w_{bak})`."""
    backup: dict[int, Tensor] = {}
    computed: dict[int, Tensor] = {}
    for event, worker, batch in turns:
        if event == "start":
            backup[worker] = w
            computed[worker] = gradient(w, batch)
        elif event == "deliver":
            g = computed.pop(worker)
            w = w - rate * (g + strength * g * g * (w - backup[worker]))
    return w


def delay_compensated_adaptively(
    w: Tensor,
    gradient: Gradient,
    turns: Turns,
    rate: float,
    strength: float,
    decay: float = 0.95,
    eps: float = 1e-7,
) -> Tensor:
    """Zheng et al. 2017, the same with the strength over the root of a running mean square of gradients."""
    backup: dict[int, Tensor] = {}
    computed: dict[int, Tensor] = {}
    square = torch.zeros_like(w)
    for event, worker, batch in turns:
        if event == "start":
            backup[worker] = w
            computed[worker] = gradient(w, batch)
        elif event == "deliver":
            g = computed.pop(worker)
            square = decay * square + (1 - decay) * g * g
            w = w - rate * (g + strength / (square + eps).sqrt() * g * g * (w - backup[worker]))
    return w


@dataclass
class Replica:
    """A model replica of Downpour SGD."""

    parameters: Tensor
    accrued: Tensor
    step: int = 0


def downpour(
    w: Tensor,
    gradient: Gradient,
    turns: Turns,
    server: Optimizer,
    rate: float,
    n_fetch: int,
    n_push: int,
) -> Tensor:
    """Dean et al. 2012, algorithm 7.1 of the appendix; what is left accrued at the end is pushed.

    Step 0 fetches and pushes. A fetch replaces the parameters, with the steps that were not pushed yet.
    """
    replicas: dict[int, Replica] = defaultdict(lambda: Replica(w, torch.zeros_like(w)))
    for event, worker, batch in turns:
        replica = replicas[worker]
        if event == "start":
            if replica.step % n_fetch == 0:
                replica.parameters = w
            g = gradient(replica.parameters, batch)
            replica.accrued = replica.accrued + g
            replica.parameters = replica.parameters - rate * g
            continue
        due = replica.step % n_push == 0 if event == "deliver" else bool(replica.accrued.any())
        if due:
            w = server(w, replica.accrued)
            replica.accrued = torch.zeros_like(w)
        replica.step += 1
    return w


def elastic_averaging(
    w: Tensor, gradient: Gradient, turns: Turns, rate: float, alpha: float, period: int, momentum: float = 0.0
) -> Tensor:
    """Zhang, Choromanska and LeCun 2015, algorithm 1; with momentum, algorithm 2. The centre is the result.

    The gradient is taken where the worker was before the elastic step.
    """
    centre = w
    local: dict[int, Tensor] = defaultdict(lambda: w)
    velocity: dict[int, Tensor] = defaultdict(lambda: torch.zeros_like(w))
    clocks: dict[int, count[int]] = defaultdict(count)
    for event, worker, batch in turns:
        if event != "start":
            continue
        x = local[worker]
        moved = x
        if next(clocks[worker]) % period == 0:
            difference = alpha * (x - centre)
            moved = x - difference
            centre = centre + difference
        ahead = x + momentum * velocity[worker]
        velocity[worker] = momentum * velocity[worker] - rate * gradient(ahead, batch)
        local[worker] = moved + velocity[worker]
    return centre


def backup_workers(
    w: Tensor, gradient: Gradient, rounds: Iterable[Sequence[Any]], needed: int, server: Optimizer
) -> Tensor:
    """Chen et al. 2016, algorithms 3 and 4: a round is its batches in the order in which gradients arrive.

    The first N of N + b make the update; what comes later was computed at old weights and is dropped.
    """
    for batches in rounds:
        w = server(w, mean([gradient(w, batch) for batch in batches[:needed]]))
    return w


def parallel_sgd(w: Tensor, gradient: Gradient, shares: Shares, rate: float) -> Tensor:
    """Zinkevich et al. 2010, algorithms 1 and 3: independent SGD on every share, averaged at the end."""

    def alone(x: Tensor, share: Sequence[Any]) -> Tensor:
        for batch in share:
            x = x - rate * gradient(x, batch)
        return x

    return mean([alone(w, share) for share in shares])


def local_sgd(w: Tensor, gradient: Gradient, shares: Shares, rate: float, steps: int) -> Tensor:
    """Stich 2019, algorithm 1: the replicas are averaged every H steps, and at the end."""
    longest = max(map(len, shares))
    for first in range(0, longest, steps):
        w = parallel_sgd(w, gradient, [share[first : first + steps] for share in shares], rate)
    return w


def diloco(
    w: Tensor,
    gradient: Gradient,
    shares: Shares,
    steps: int,
    inner: Callable[[], Optimizer],
    outer: Optimizer,
) -> Tensor:
    """Douillard et al. 2023, algorithm 1; the state of every inner optimizer lives through all rounds."""
    optimizers = [inner() for _ in shares]
    for first in range(0, max(map(len, shares)), steps):
        differences = []
        for share, optimize in zip(shares, optimizers, strict=True):
            x = w
            for batch in share[first : first + steps]:
                x = optimize(x, gradient(x, batch))
            differences.append(w - x)
        w = outer(w, mean(differences))
    return w


def asynchronous_diloco(
    w: Tensor,
    gradient: Gradient,
    turns: Turns,
    steps: Callable[[int], int],
    inner: Callable[[], Optimizer],
    outer: Optimizer,
) -> Tensor:
    """Liu et al. 2024: every worker's pseudo-gradient is applied when it is there.

    ``steps(worker)`` is its number of local steps: equal for all, or :func:`dynamic_local_updates`.
    """
    optimizers: dict[int, Optimizer] = defaultdict(inner)
    pulled: dict[int, Tensor] = {}
    local: dict[int, Tensor] = {}
    done: dict[int, int] = defaultdict(int)
    for event, worker, batch in turns:
        if event == "start":
            if done[worker] == 0:
                pulled[worker] = local[worker] = w
            x = local[worker]
            local[worker] = optimizers[worker](x, gradient(x, batch))
            done[worker] += 1
        elif done[worker] == steps(worker) or (event == "end" and done[worker]):
            w = outer(w, pulled[worker] - local[worker])
            done[worker] = 0
    return w


def dynamic_local_updates(speeds: Sequence[float], steps: int) -> list[int]:
    """Liu et al. 2024, dynamic local updates: steps in proportion to the speed; the fastest does H."""
    return [int(speed / max(speeds) * steps) for speed in speeds]

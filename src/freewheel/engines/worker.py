"""A worker's side of a run, the same on every engine: its replica, its copy of the weights, its link."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from freewheel.errors import TrainingError
from freewheel.exchanges import Local
from freewheel.job import Setup
from freewheel.link import Link, Outgoing, Pull, Send
from freewheel.methods import Method
from freewheel.params import Parameters
from freewheel.server import Receipt
from freewheel.tasks import WorkerContext
from freewheel.update import Update

HOPELESS = 20  # steps in a row with a loss that is not finite, before the run is given up


class Life(NamedTuple):
    """Which life of a worker it is.

    Attributes:
        incarnation: from 0.
        first: number of its first step; pushes of a life are numbered from 0.
    """

    incarnation: int = 0
    first: int = 0

    def stamp(self, update: Update) -> None:
        """So that the server knows the pushes of this life from those of an earlier one."""
        update.incarnation = self.incarnation
        update.sequence -= self.first

    def stamping(self, send: Send) -> Send:
        """Sends updates with the stamp of this life."""

        def stamped(update: Update) -> Receipt | None:
            self.stamp(update)
            return send(update)

        return stamped


@dataclass(frozen=True)
class Equipment:
    """What all workers of a run are made from.

    Attributes:
        parameters: the shared weights.
        method: how workers and the server relate.
        setup: workers and seed.
        planned: examples of the whole run; None if unknown.
    """

    parameters: Parameters
    method: Method
    setup: Setup
    planned: int | None

    def context(
        self, worker: int, module: nn.Module, flat: Tensor | None, send: Send, incarnation: int = 0
    ) -> WorkerContext:
        """A worker's context, with a replica of the module in training mode.

        Args:
            worker: which worker, from 0.
            module: what to make the replica of.
            flat: the worker's own copy of the weights; None reads the live ones.
            send: hands an update to the server after a step.
            incarnation: which life of the worker; each draws anew.
        """
        twin, weights, statistics = self.parameters.replica(module, flat)
        if not module.training:
            twin.train()
        seed = self.setup.seed
        generator = torch.Generator().manual_seed((seed << 20) + (incarnation << 40) + worker)
        shared = self.parameters.statistics
        return WorkerContext(worker, seed, twin, weights, statistics, shared, send, generator)

    def local(self, worker: int, flat: Tensor, pace: Callable[[], float]) -> Local:
        """What a worker's exchange is made of."""
        entries = self.parameters.layout.trainable
        weights = [entry.view(flat) for entry in entries]
        return Local(flat, entries, weights, worker, self.setup.workers, self.planned, pace)

    def link(self, context: WorkerContext, local: Local, pull: Pull, send: Send, send_now: Send) -> Link:
        """A worker's end of the line, which delivers what its task pushes."""
        assert self.method.exchange is not None
        link = Link(
            self.method.exchange(local),
            context,
            pull,
            send,
            send_now,
            self.outgoing(local),
            self.method.in_flight,
        )
        context.deliver = link.deliver
        return link

    def outgoing(self, local: Local) -> Outgoing | None:
        """What a worker does to an update before it is sent."""
        rule = self.method.compression
        return None if rule is None else Outgoing(rule, local, self.setup.seed)


def pace(worker: int, steps: list[int]) -> float:
    """Steps of a worker as a share of the fastest worker's."""
    most = max(steps)
    return steps[worker] / most if most else 1.0


def hopeless(worker: int, loss: float, before: int) -> int:
    """Steps in a row with a loss that is not finite, after one more step.

    Args:
        worker: whose.
        loss: of the step.
        before: how many there were.

    Raises:
        TrainingError: too many.
    """
    if math.isfinite(loss):
        return 0
    if before + 1 >= HOPELESS:
        raise TrainingError(
            f"training diverged: the loss was {loss} in {HOPELESS} steps of worker {worker} in a row;"
            " lower `lr`, clip gradients with rule=chain(clip(1.0), sgd(lr)), or look for bad values in"
            " the data"
        )
    return before + 1

"""What one worker computes in one step, and what it is given for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from freewheel.server import Receipt
from freewheel.sources import Batch, Lease
from freewheel.update import WHOLE, Update

S = TypeVar("S")


class StepReport(NamedTuple):
    """What a step tells about itself.

    Attributes:
        loss: of the minibatch, before the update.
        samples: examples it used.
    """

    loss: float
    samples: int


@dataclass(slots=True)
class WorkerContext:
    """A worker's side of a run. Everything that a task hands to the outside goes through ``push``.

    Attributes:
        worker: which worker, from 0.
        seed: of the run; draw from ``generator``, which is seeded by (seed, worker).
        module: this worker's replica; its weights are live views of the shared vector, or of a copy of its
            own.
        weights: the replica's trainable parameters, in the order of the layout.
        statistics: this worker's own running statistics (BatchNorm), ``(m,)``, possibly empty.
        shared_statistics: the server's, to start again from after a step that was given up.
        deliver: hands an update to the server, now or when this worker's turn comes.
        version: of the weights, when this worker last pulled.
        versions: the same for every shard, where there are several.
        sequence: number of the step under way, from 0.
        samples: examples of the step under way; a task sets it before it pushes.
        receipt: what became of the last push; None while it has not been delivered.
        before_deposit: called before a worker process hands over its state for a checkpoint, if given.
    """

    worker: int
    seed: int
    module: nn.Module
    weights: list[nn.Parameter]
    statistics: Tensor
    shared_statistics: Tensor
    deliver: Callable[[Update], Receipt | None]
    generator: torch.Generator = field(default_factory=torch.Generator)
    version: int = 0
    versions: tuple[int, ...] = ()
    sequence: int = 0
    samples: int = 0
    receipt: Receipt | None = None
    before_deposit: Callable[[], object] | None = None

    def push(self, update: Update) -> None:
        """Hands an update to the server, which owns its gradients from then on."""
        receipt = self.deliver(update)
        if update.last:
            self.receipt = receipt

    def push_gradients(
        self, gradients: list[Tensor | None], entries: tuple[int, ...] = WHOLE, last: bool = True
    ) -> None:
        """Pushes gradients of the step under way; the last push carries the running statistics.

        Args:
            gradients: one per entry, of the weights' shapes.
            entries: which trainable entries they are of; ``WHOLE`` is all.
            last: nothing of this step follows.
        """
        update = Update(gradients, entries, self.version, self.worker, self.sequence, self.samples, last)
        update.versions = self.versions
        if last and self.statistics.numel():
            update.buffers = self.statistics
        self.push(update)

    def give_up(self, reason: str) -> None:
        """Closes the step without an update; the ledger shows the reason."""
        if self.statistics.numel():
            self.statistics.copy_(self.shared_statistics)
        update = Update([], WHOLE, self.version, self.worker, self.sequence, self.samples, rejected=reason)
        update.versions = self.versions
        self.push(update)

    def state(self) -> dict[str, Any]:
        """What belongs to the worker between two steps, for a checkpoint; tensors are not copied."""
        return {
            **{name: getattr(self, name) for name in ("version", "versions", "sequence")},
            "receipt": None if self.receipt is None else tuple(self.receipt),
            "statistics": self.statistics,
            "generator": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self.version, self.versions, self.sequence = (state[n] for n in ("version", "versions", "sequence"))
        self.receipt = None if state["receipt"] is None else Receipt(*state["receipt"])
        self.statistics.copy_(state["statistics"])
        self.generator.set_state(state["generator"])

    def dissolve(self) -> None:
        """Lets go of the replica: hooks on its weights refer to this context, and cycles are freed late."""
        self.module, self.weights = nn.Module(), []


class Task(Protocol[S]):
    """What one worker computes in one step. ``S`` is state that belongs to one worker."""

    def init(self, context: WorkerContext) -> S:
        """Prepares a worker: hooks on its replica, hidden state. Called once, on the worker's own thread."""
        ...

    def step(self, context: WorkerContext, lease: Lease, state: S) -> StepReport:
        """Computes on a lease and pushes what comes of it."""
        ...

    def measure(self, module: nn.Module, batch: Batch, carry: Any) -> tuple[dict[str, float], int, Any]:
        """Sums of metrics over a batch, the number they are sums over, and what the next batch carries on."""
        ...

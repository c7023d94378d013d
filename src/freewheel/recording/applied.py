"""One update of a replay, and where its worker stands."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from freewheel.recording.log import Operation
from freewheel.sources import Lease
from freewheel.tasks import StepReport
from freewheel.update import Update


@dataclass(frozen=True)
class AppliedUpdate:
    """One update that the server applied.

    Attributes:
        number: of the update, from 1.
        operation: of the recording, from 0.
        worker: who pushed it; of a round, who completed it.
        push: which of the worker's pushes, from 0.
        step: the worker's step that it was pushed after, from 0; -1: pushed before any.
        lease: the batch of that step.
        loss: of that step's minibatch; NaN before any.
        samples: examples behind it.
        staleness: updates applied between the worker's pull and this push.
        norm: Euclidean norm of the gradient, or pseudo-gradient, as it was pushed.
        change: Euclidean norm of what it changed in the weights.
        weights_norm: Euclidean norm of the trainable weights afterwards.
    """

    number: int
    operation: int
    worker: int
    push: int
    step: int
    lease: int
    loss: float
    samples: int
    staleness: int
    norm: float
    change: float
    weights_norm: float


@dataclass
class Standing:
    """Where a worker stands: what it has computed and not pushed yet, and its last step."""

    outbox: deque[Update] = field(default_factory=deque)
    begun: bool = False
    computing: tuple[Lease, StepReport] | None = None
    step: int = -1
    lease: int = -1
    loss: float = float("nan")

    def applied(
        self,
        number: int,
        place: int,
        operation: Operation,
        norm: float,
        weights: list[Tensor],
        old: list[Tensor],
    ) -> AppliedUpdate:
        """What there is to say of a push of this worker that was applied."""
        return AppliedUpdate(
            number=number,
            operation=place,
            worker=operation.worker,
            push=operation.number,
            step=self.step,
            lease=self.lease,
            loss=self.loss,
            samples=operation.samples,
            staleness=operation.staleness,
            norm=norm,
            change=norm_of(list(torch._foreach_sub(weights, old))),
            weights_norm=norm_of(weights),
        )


def norm_of(tensors: list[Tensor]) -> float:
    """Euclidean norm over all of them."""
    if not tensors:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors))))

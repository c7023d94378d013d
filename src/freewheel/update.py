"""An update: what one worker hands the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Granularity = Literal["model", "layer"]
"""How much of a model one update covers: all of it, or one parameter, pushed in the backward pass."""

WHOLE: tuple[int, ...] = ()
"""Stands for every trainable entry, so that the common case needs no tuple of all."""


@dataclass(slots=True)
class Update:
    """A gradient (or pseudo-gradient) of some entries of the flat vector.

    The receiver owns the gradients and may change them in place.

    Attributes:
        gradients: one tensor per entry, of the weight's shape and strides; None where the batch did not use
            it.
        entries: indices of trainable entries of the layout, ascending; ``WHOLE`` means all of them, in order.
        version: the server's version of the weights that the gradients were computed from.
        worker: who computed it.
        sequence: which of this worker's steps it belongs to, from 0; which of its pushes, where not every
            step pushes.
        samples: number of examples behind it; aggregation weights by it.
        last: no further piece of this step follows (layer-wise steps push several).
        incarnation: which life of the worker; a restarted worker has a higher one.
        rejected: why the worker itself gives this step up ("non-finite loss"); empty for a good update.
        buffers: the worker's floating-point buffers (BatchNorm statistics) after the step, or None.
        versions: of every shard, where there are several; else empty, and ``version`` tells.
        pulled: the weights that the gradients were computed at, aligned with them, read only; None where
            no rule needs them.
        weight: what it counts in the mean of a round; None: its samples.
        wire_bytes: what the gradients take on a network after compression; None: four bytes an element.
    """

    gradients: list[Tensor | None]
    entries: tuple[int, ...] = WHOLE
    version: int = 0
    worker: int = 0
    sequence: int = 0
    samples: int = 1
    last: bool = True
    incarnation: int = 0
    rejected: str = ""
    buffers: Tensor | None = field(default=None, repr=False)
    versions: tuple[int, ...] = ()
    pulled: list[Tensor] | None = field(default=None, repr=False)
    weight: int | None = None
    wire_bytes: int | None = None

    def state(self, statistics: Tensor | None = None) -> dict[str, Any]:
        """Everything in it, for a checkpoint; tensors are not copied.

        Args:
            statistics: buffers that are this very tensor, and not a copy, will be the restored worker's own.
        """
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "buffers"}
        own = self.buffers is not None and self.buffers is statistics
        return {**fields, "own_buffers": own, "buffers": None if own else self.buffers}

    @classmethod
    def restored(cls, state: Mapping[str, Any], statistics: Tensor | None = None) -> Update:
        """The update that :meth:`state` told of; ``statistics`` are the worker's."""
        fields = {**state}
        if fields.pop("own_buffers"):
            fields["buffers"] = statistics
        return cls(**fields)

    @property
    def share(self) -> int:
        """What it counts in the mean of a round."""
        return self.samples if self.weight is None else self.weight


def add_share(result: list[Tensor | None], gradients: list[Tensor | None], share: float = 1.0) -> None:
    """Adds a share of gradients to a sum, in place; a gradient that is None counts as zero."""
    targets: list[Tensor] = []
    addends: list[Tensor] = []
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        target = result[i]
        if target is None:
            result[i] = gradient if share == 1 else gradient.mul_(share)
        else:
            targets.append(target)
            addends.append(gradient)
    if targets:
        torch._foreach_add_(targets, addends, alpha=share)

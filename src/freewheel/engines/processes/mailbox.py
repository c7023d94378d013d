"""Where a worker process leaves the tensors of an update for the main process to apply."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from freewheel.conform import conform
from freewheel.engines.processes.messages import Push
from freewheel.engines.processes.shared import Arena
from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.update import WHOLE, Update


@final
class Mailbox:
    """Shared memory for one update of one worker: gradients, running statistics, the weights it pulled.

    The worker writes and sends a :class:`Push`; the main process reads. It is written again when the worker
    has been answered, and pieces of one step (layers) have places of their own.

    Args:
        parameters: their layout.
        gradients: ``(layout.size,)``.
        statistics: ``(statistics_layout.size,)``.
        pulled: ``(layout.size,)``; None where updates do not carry weights.
    """

    def __init__(
        self, parameters: Parameters, gradients: Tensor, statistics: Tensor, pulled: Tensor | None
    ) -> None:
        entries = parameters.layout.trainable
        self._names = [entry.name for entry in entries]
        self._gradients = [entry.view(gradients) for entry in entries]
        self._strides = [view.stride() for view in self._gradients]
        self._statistics = statistics
        self._pulled = None if pulled is None else [entry.view(pulled) for entry in entries]

    @classmethod
    def within(cls, arena: Arena, parameters: Parameters, workers: int, pulled: bool) -> list[Mailbox]:
        """One for every worker."""
        size, statistics = parameters.layout.size, parameters.statistics_layout.size
        vectors = iter(arena.zeros(*[(size,), (statistics,), (size if pulled else 0,)] * workers))
        return [
            cls(parameters, gradients, buffers, weights if pulled else None)
            for gradients, buffers, weights in zip(vectors, vectors, vectors, strict=True)
        ]

    def write(self, update: Update, now: bool) -> Push:
        """Copies the tensors of an update; returns the message that tells of it."""
        present = self._write_gradients(update)
        if update.buffers is not None:
            self._statistics.copy_(update.buffers)
        if update.pulled is not None and self._pulled is not None:
            torch._foreach_copy_(self._pulled, update.pulled)
        bare = replace(update, gradients=[], buffers=None, pulled=None)
        return Push(bare, present, update.buffers is not None, update.pulled is not None, now)

    def _write_gradients(self, update: Update) -> tuple[bool, ...] | None:
        gradients = update.gradients
        if not gradients:
            return ()
        places = self._places(update.entries)
        views = [self._gradients[i] for i in places]
        for place, gradient in zip(places, gradients, strict=True):
            self._check_shape(place, gradient)
        conform(gradients, views, [self._strides[i] for i in places], [self._names[i] for i in places])
        used = [
            (view, gradient) for view, gradient in zip(views, gradients, strict=True) if gradient is not None
        ]
        if used:
            targets, values = (list(column) for column in zip(*used, strict=True))
            torch._foreach_copy_(targets, values)
        if len(used) == len(gradients):
            return None
        return tuple([gradient is not None for gradient in gradients])

    def _check_shape(self, place: int, gradient: Tensor | None) -> None:
        """Copying would spread a smaller one over the weight."""
        if gradient is not None and gradient.shape != self._gradients[place].shape:
            raise ConfigurationError(
                f"the gradient of {self._names[place]!r} must have its shape"
                f" {tuple(self._gradients[place].shape)}, got {tuple(gradient.shape)}"
            )

    def read(self, push: Push) -> Update:
        """The update of a message; its tensors are those of the mailbox."""
        views: list[Tensor | None] = [self._gradients[i] for i in self._places(push.update.entries)]
        if push.present == ():
            views = []
        elif push.present is not None:
            views = [view if here else None for view, here in zip(views, push.present, strict=True)]
        push.update.gradients = views
        push.update.buffers = self._statistics if push.buffers else None
        push.update.pulled = self._pulled if push.pulled else None
        return push.update

    def _places(self, entries: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(range(len(self._names))) if entries == WHOLE else entries

"""The workers of a simulated run: one module computes for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from freewheel.engines.session import Session
from freewheel.exchanges import Exchange, Fresh
from freewheel.link import Outgoing
from freewheel.simulation.rhythm import Rhythm
from freewheel.tasks import WorkerContext
from freewheel.update import Update


class Weights(NamedTuple):
    """A vector of weights, and the views of it that a module computes with."""

    flat: Tensor
    views: list[Tensor]


@dataclass(slots=True)
class Member:
    """One worker.

    Attributes:
        number: which, from 0.
        context: what its task is given.
        weights: what its module computes with; None: the live weights, as they are when its pull is served.
        exchange: its half of the method; None: it pushes every gradient.
        outgoing: what it does to an update before it is sent.
        rhythm: how long its steps take.
        statistics: its running statistics, ``(m,)``.
        begun: steps begun.
        finished: steps computed.
        sent: pushes.
        life: how often it has come back.
        ready_at: when it will have computed all steps that it has begun.
        busy_s: seconds of computing.
        asking: a pull is under way.
        owed: steps that it may begin when that pull was served.
        dead: it does not answer.
    """

    number: int
    context: WorkerContext
    weights: Weights | None
    exchange: Exchange | None
    outgoing: Outgoing | None
    rhythm: Rhythm
    statistics: Tensor
    begun: int = 0
    finished: int = 0
    sent: int = 0
    life: int = 0
    ready_at: float = 0.0
    busy_s: float = 0.0
    asking: bool = False
    owed: int = 0
    dead: bool = False
    outbox: list[Update] = field(default_factory=list)


@final
class Fleet:
    """Makes the workers, and lends each the one replica when it computes.

    Steps are computed one after the other, whatever their virtual times, so one module is enough: its weights
    are pointed at the vector that a worker reads. A worker whose weights are fresh from the server before
    every step needs no vector of its own: its gradient is computed at the moment at which its pull is served,
    on the live weights. So a thousand workers need one gradient each while a step is under way, and no
    copies.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        parameters, module = session.parameters, session.job.module
        self._replica, self._weights, self._statistics = parameters.replica(module)
        self._replica.train()
        self._live = Weights(parameters.flat, parameters.trainable_views())
        self._bound = self._live
        self._has_statistics = self._statistics.numel() > 0
        self._snapshot: tuple[int, list[Tensor]] = (-1, [])
        parameters.bind(module)

    def member(self, number: int, rhythm: Rhythm) -> Member:
        """A worker at its beginning."""
        session, setup = self._session, self._session.job.setup
        generator = torch.Generator().manual_seed((setup.seed << 20) + number)
        shared = session.parameters.statistics
        context = WorkerContext(
            number, setup.seed, self._replica, self._weights, self._statistics, shared, _nowhere, generator
        )
        session.contexts.append(context)
        weights, exchange, outgoing = self.equipment(number)
        return Member(number, context, weights, exchange, outgoing, rhythm, self._statistics.clone())

    def equipment(self, number: int) -> tuple[Weights | None, Exchange | None, Outgoing | None]:
        """A worker's weights, exchange and outgoing rule, as they are when it begins (or begins anew)."""
        session = self._session
        if session.job.method.exchange is None:
            return self._own_if_sharded(), None, None
        local = session.local(number, self._live.flat)
        exchange = session.exchange(local)
        if isinstance(exchange, Fresh):
            return self._own_if_sharded(), exchange, session.outgoing(local)
        weights = self._copy()
        local = session.local(number, weights.flat)
        return Weights(weights.flat, local.weights), session.exchange(local), session.outgoing(local)

    def _own_if_sharded(self) -> Weights | None:
        """Shards are read at different times, so what a worker has read so far must be kept."""
        return self._copy() if len(self._session.server.shards) > 1 else None

    def _copy(self) -> Weights:
        flat = self._live.flat.clone()
        return Weights(flat, [entry.view(flat) for entry in self._session.parameters.layout.trainable])

    def lend(self, member: Member) -> None:
        """Points the replica at the worker's weights and statistics."""
        weights = member.weights or self._live
        if weights is not self._bound:
            for parameter, view in zip(self._weights, weights.views, strict=True):
                parameter.data = view
            self._bound = weights
        if self._has_statistics:
            self._statistics.copy_(member.statistics)

    def take_back(self, member: Member, updates: list[Update]) -> None:
        """Keeps what the next worker's step would overwrite: the running statistics, the weights read."""
        if self._has_statistics:
            member.statistics.copy_(self._statistics)
        for update in updates:
            if update.buffers is not None:
                update.buffers = member.statistics.clone()
            if update.pulled is not None:
                update.pulled = self._kept(member)

    def _kept(self, member: Member) -> list[Tensor]:
        """The weights that a gradient was computed at; workers that read the same version share one copy."""
        if member.weights is not None:
            return [view.clone() for view in member.weights.views]
        version = self._session.server.version
        if self._snapshot[0] != version:
            self._snapshot = (version, [view.clone() for view in self._live.views])
        return self._snapshot[1]

    @property
    def replica(self) -> nn.Module:
        """The module that computes for all."""
        return self._replica


def _nowhere(update: Update) -> Any:
    raise AssertionError("a simulated worker pushes through its member's outbox")

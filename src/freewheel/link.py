"""A worker's end of the line to the server: its exchange, the rules it runs before a push, its overlap."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from freewheel.exchanges import Exchange, Local
from freewheel.rules import Rule, RuleContext, Span
from freewheel.rules.base import restore
from freewheel.server import Receipt
from freewheel.tasks import WorkerContext
from freewheel.update import Update

KEPT = None
"""The receipt of a step that pushed nothing: its gradient is kept on the worker."""

Pull = Callable[[Tensor], tuple[int, ...]]
Send = Callable[[Update], Receipt | None]


@final
class Outgoing:
    """The rule that a worker runs on what it pushes, such as a compression, with its state.

    Args:
        rule: hands on the update that is to be sent, or None to send nothing.
        local: the worker's weights.
        seed: of the run; rules draw from a generator of (seed, worker).
    """

    def __init__(self, rule: Rule, local: Local, seed: int) -> None:
        self._apply = rule.apply
        self._local = local
        self._state = rule.init(Span(local.names, local.weights))
        generator = torch.Generator().manual_seed((seed << 20) + local.worker)
        self._context = RuleContext(
            local.names, local.weights, worker=local.worker, workers=local.workers, generator=generator
        )

    def apply(self, update: Update) -> Update:
        """The update as it is sent; one that the rule drops is sent as rejected, for the book."""
        if update.rejected or not update.gradients:
            return update
        self._context.verdict = "applied"
        self._local.conform(update)
        if self._apply(update, self._state, self._context) is None:
            update.gradients, update.rejected = [], self._context.verdict
        return update

    def state(self) -> dict[str, Any]:
        """What the rule keeps back, and its generator, for a checkpoint."""
        assert self._context.generator is not None
        return {"rule": self._state, "generator": self._context.generator.get_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        assert self._context.generator is not None
        restore(self._state, state["rule"])
        self._context.generator.set_state(state["generator"])


@final
class Link:
    """Runs an exchange over a server that answers at once.

    Args:
        exchange: decides what is pulled and pushed.
        context: the worker's; its version is set by a pull.
        pull: copies the server's weights to a vector; returns the versions of its shards.
        send: hands an update to the server after a step, now or when this worker's turn comes.
        send_now: hands it over at once, before the step computes.
        outgoing: what the worker does to an update before it is sent.
        in_flight: for how many further steps a push is under way: a worker's own update is that many steps
            late for itself.
    """

    def __init__(
        self,
        exchange: Exchange,
        context: WorkerContext,
        pull: Pull,
        send: Send,
        send_now: Send,
        outgoing: Outgoing | None = None,
        in_flight: int = 0,
    ) -> None:
        self.exchange = exchange
        self._context = context
        self._pull = pull
        self._send = send
        self._send_now = send_now
        self._outgoing = outgoing
        self._in_flight = in_flight
        self._sent = 0
        self._steps = 0  # computed
        self._waiting: deque[tuple[int, Update]] = deque()  # pushes, and the step after which each is sent

    def begin(self) -> None:
        """What a step does before it computes."""
        self._context.receipt = None
        if not self.exchange.wants_pull():
            return
        self.pull(self.exchange.target)
        early = self.exchange.arrived()
        if early is not None:
            self._context.receipt = self._send_now(self.prepared(stamped(early, self._context)))

    def pull(self, target: Tensor) -> None:
        """Copies the server's weights, and notes their version."""
        received(self._pull(target), self._context)

    def deliver(self, update: Update) -> Receipt | None:
        """Takes the gradient of the step; None if it is kept on the worker."""
        pushed = self.exchange.offer(update)
        step, self._steps = self._steps, self._steps + 1
        if pushed is not None:
            if self._in_flight and pushed.buffers is not None:
                pushed.buffers = pushed.buffers.clone()  # the next step overwrites them
            self._waiting.append((step + self._in_flight, self.prepared(pushed)))
        if self._waiting and self._waiting[0][0] <= step:
            return self._send(self._waiting.popleft()[1])
        return self._context.receipt if pushed is None else KEPT

    def flush(self, final: bool) -> bool:
        """Pushes what is left when everybody stands still; whether there was anything.

        Args:
            final: the run ends; before that only exchanges push that settle at every evaluation.
        """
        if not final and not self.exchange.settles:
            return False
        rest = self.exchange.flush(self.pull)
        if rest is not None:
            self._waiting.append((self._steps, self.prepared(rest)))
        found = bool(self._waiting)
        while self._waiting:
            self._send_now(self._waiting.popleft()[1])
        return found

    def intercept(self, wrap: Callable[[Send], Send]) -> None:
        """Puts something between the worker and the server: for tests of what may go wrong there."""
        self._send, self._send_now = wrap(self._send), wrap(self._send_now)

    def state(self) -> dict[str, Any]:
        """What the worker holds between two steps, pushes under way included, for a checkpoint."""
        statistics = self._context.statistics
        return {
            "exchange": self.exchange.state(statistics),
            "outgoing": None if self._outgoing is None else self._outgoing.state(),
            "sent": self._sent,
            "steps": self._steps,
            "waiting": [(step, update.state(statistics)) for step, update in self._waiting],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Holds what was held then."""
        statistics = self._context.statistics
        self.exchange.restore(state["exchange"], statistics)
        if self._outgoing is not None:
            self._outgoing.restore(state["outgoing"])
        self._sent, self._steps = state["sent"], state["steps"]
        self._waiting = deque((step, Update.restored(then, statistics)) for step, then in state["waiting"])

    def prepared(self, update: Update) -> Update:
        """The update as it is sent; pushes are numbered by themselves, since not every step has one."""
        update.sequence, self._sent = self._sent, self._sent + 1
        return update if self._outgoing is None else self._outgoing.apply(update)


def received(versions: tuple[int, ...], context: WorkerContext) -> None:
    """Notes the versions of the weights that were pulled."""
    context.version = versions[0]
    context.versions = versions if len(versions) > 1 else ()


def stamped(update: Update, context: WorkerContext) -> Update:
    """An update that the exchange made by itself, with the worker's number and version."""
    update.worker = context.worker
    update.version, update.versions = context.version, context.versions
    if context.statistics.numel():
        update.buffers = context.statistics
    return update

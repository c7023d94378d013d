"""Exchanges: the worker's half of a method. When to pull, what to do with a gradient, what to push.

An exchange is a state machine without threads, clock or network. An engine asks it whether the step that
begins needs a pull, does the pull, hands it the step's gradient and pushes what comes back. So the same
exchange runs at once on threads and message by message on the simulator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from freewheel.conform import conform
from freewheel.params import Entry
from freewheel.rules import Rule, RuleContext, Span
from freewheel.update import WHOLE, Update


@dataclass
class Local:
    """A worker's own copy of the weights, and what an exchange may know of the run.

    Attributes:
        flat: ``(n,)`` float32; the worker's module computes with views of it.
        entries: the trainable entries of the layout.
        weights: their views of ``flat``.
        worker: whose it is.
        workers: how many there are.
        planned: examples of the whole run, for schedules; None if unknown.
        pace: this worker's steps so far as a share of the fastest worker's, in (0, 1].
    """

    flat: Tensor
    entries: tuple[Entry, ...]
    weights: list[Tensor]
    worker: int = 0
    workers: int = 1
    planned: int | None = None
    pace: Callable[[], float] = field(default=lambda: 1.0)

    def __post_init__(self) -> None:
        self._strides = [weight.stride() for weight in self.weights]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable entries."""
        return tuple(entry.name for entry in self.entries)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The trainable entries as views of another vector of the same layout."""
        return [entry.view(flat) for entry in self.entries]

    def conform(self, update: Update) -> None:
        """Gives a step's gradients memory of their own, laid out as the weights'."""
        conform(update.gradients, self.weights, self._strides, self.names)


class Descent:
    """A rule that a worker applies to its own weights."""

    def __init__(self, rule: Rule, local: Local) -> None:
        self._rule = rule
        self._state = rule.init(Span(local.names, local.weights))
        self._context = RuleContext(
            local.names, local.weights, 0, local.planned, worker=local.worker, workers=local.workers
        )

    def apply(self, update: Update) -> None:
        """One step of the rule; the update's gradients are used up.

        Schedules see this worker's examples times the number of workers: what all have used if they are
        equal.
        """
        self._rule.apply(update, self._state, self._context)
        self._context.samples += update.samples * self._context.workers


class Exchange(ABC):
    """The worker's half of a method.

    Attributes:
        target: where the engine copies the server's weights to when a pull is wanted.
        settles: it pushes whenever the model is measured, and not only at the end of the run.
    """

    target: Tensor
    settles: bool = False

    @abstractmethod
    def wants_pull(self) -> bool:
        """Whether the step that begins needs the server's weights."""

    def arrived(self) -> Update | None:
        """The pulled weights are in ``target``; what to push before the step computes."""
        return None

    @abstractmethod
    def offer(self, update: Update) -> Update | None:
        """Takes a step's gradient; what to push now, or None while it is kept on the worker."""

    def flush(self, pull: Callable[[Tensor], None]) -> Update | None:
        """What has not been pushed when the run ends; everybody stands still.

        Args:
            pull: copies the server's weights to a vector, should they be needed.
        """
        return None


ExchangeMaker = Callable[[Local], Exchange]


@final
class Fresh(Exchange):
    """Pulls before and pushes after every step.

    Args:
        local: the worker's weights.
        keeps: hand on the weights that the gradient was computed at, for rules that compensate for delay.
    """

    def __init__(self, local: Local, keeps: bool = False) -> None:
        self.target = local.flat
        self._pulled = local.weights if keeps else None

    def wants_pull(self) -> bool:
        """Always."""
        return True

    def offer(self, update: Update) -> Update:
        """The gradient itself."""
        update.pulled = self._pulled
        return update


@final
class Accruing(Exchange):
    """Pushes sums of gradients, and goes on with weights of its own meanwhile (Downpour SGD).

    Args:
        local: the worker's weights.
        push_every: steps between pushes; the first step pushes, as in Dean et al. 2012, algorithm 7.1.
        pull_every: steps between pulls.
        rule: what the worker does to its own weights with each gradient; None leaves them as they are.
    """

    def __init__(self, local: Local, push_every: int, pull_every: int, rule: Rule | None) -> None:
        self.target = local.flat
        self._local = local
        self._push_every, self._pull_every = push_every, pull_every
        # Weights that are pulled anew before every step need no steps of their own.
        self._descent = Descent(rule, local) if rule is not None and pull_every > 1 else None
        self._step = 0
        self._accrued: Update | None = None

    def wants_pull(self) -> bool:
        """At every ``pull_every``-th step."""
        return self._step % self._pull_every == 0

    def offer(self, update: Update) -> Update | None:
        """Accrues the gradient; at every ``push_every``-th step the sum since the last push."""
        due = self._step % self._push_every == 0
        self._step += 1
        if update.rejected:
            return update
        self._local.conform(update)
        if self._descent is None:
            self._accrue(update, update.gradients)
        else:
            self._accrue(update, [None if g is None else g.clone() for g in update.gradients])
            self._descent.apply(update)
        return self._emit() if due else None

    def flush(self, pull: Callable[[Tensor], None]) -> Update | None:
        """The rest of the sum."""
        return self._emit()

    def _accrue(self, update: Update, gradients: list[Tensor | None]) -> None:
        if self._accrued is None:
            self._accrued = _from(update, gradients)
            self._accrued.version, self._accrued.versions = update.version, update.versions
            return
        add(self._accrued.gradients, gradients)
        self._accrued.samples += update.samples

    def _emit(self) -> Update | None:
        update, self._accrued = self._accrued, None
        return update


@final
class Differing(Exchange):
    """Trains weights of its own for some steps and pushes by how much they have moved, as a pseudo-gradient.

    Args:
        local: the worker's weights.
        rule: the inner optimizer; its state stays with the worker.
        steps: between pushes; None pushes only when the model is measured, and never pulls (parallel SGD).
        dynamic: a slower worker takes fewer steps, in proportion to its pace (dynamic local updates).
    """

    def __init__(self, local: Local, rule: Rule, steps: int | None, dynamic: bool = False) -> None:
        self._local = local
        self._descent = Descent(rule, local)
        self.target = local.flat.clone()
        self._origin = local.views(self.target)
        self.settles = steps is None
        self._steps, self._dynamic = steps, dynamic
        self._due = steps
        self._done = 0
        self._samples = self._used = 0  # examples since the last push, and in all
        self._last: Update | None = None
        self._fresh = True

    def wants_pull(self) -> bool:
        """After a push, and at the start."""
        return self._fresh

    def arrived(self) -> None:
        """Begins anew from the pulled weights."""
        self._local.flat.copy_(self.target)
        self._fresh = False
        if self._dynamic and self._steps is not None:
            self._due = max(1, int(self._steps * self._local.pace()))

    def offer(self, update: Update) -> Update | None:
        """Takes a step of its own; after the last one, where it came from minus where it is."""
        if update.rejected:
            return update
        self._local.conform(update)
        self._last = update
        self._samples += update.samples
        self._used += update.samples
        self._done += 1
        self._descent.apply(update)
        return self._emit(update) if self._due is not None and self._done >= self._due else None

    def flush(self, pull: Callable[[Tensor], None]) -> Update | None:
        """How far it has moved since the last push."""
        if self._last is None or not self._done:
            return None
        if not self.settles:
            return self._emit(self._last)
        pull(self.target)
        result = self._difference(self._last)
        result.weight = self._used  # by those since the last average alone, who took no step would not count
        return result

    def _emit(self, update: Update) -> Update:
        difference = self._difference(update)
        self._done, self._fresh = 0, True
        return difference

    def _difference(self, update: Update) -> Update:
        moved: list[Tensor | None] = list(torch._foreach_sub(self._origin, self._local.weights))
        result = _from(update, moved)
        result.samples, self._samples = self._samples, 0
        return result


@final
class Elastic(Exchange):
    """Keeps weights of its own, and pulls them and the centre towards each other (elastic averaging).

    Args:
        local: the worker's weights; with momentum they hold the look-ahead x + delta v, where the gradient is
            taken.
        descent: the rule of the worker's own steps.
        alpha: moving rate, the share of the difference that is exchanged.
        period: steps between exchanges, tau.
        momentum: delta of EAMSGD; 0 is EASGD.
        weight_decay: L2 penalty, added to the gradient where it is taken: a rule that moves the velocity
            would take the velocity for the weights.
    """

    def __init__(
        self,
        local: Local,
        descent: Rule,
        alpha: float,
        period: int,
        momentum: float,
        weight_decay: float = 0.0,
    ) -> None:
        self._local = local
        self._rule = descent
        self._context = RuleContext(local.names, local.weights, 0, local.planned, workers=local.workers)
        self._state = descent.init(Span(local.names, local.weights))
        self._alpha, self._period, self._momentum = alpha, period, momentum
        self._weight_decay = weight_decay
        self.target = local.flat.clone()
        self._centre = local.views(self.target)
        self._velocity = [torch.zeros_like(weight) for weight in local.weights] if momentum else []
        self._pull_back: list[Tensor] | None = None
        self._step = 0
        self._samples = 0

    def wants_pull(self) -> bool:
        """When the period divides the step."""
        return self._step % self._period == 0

    def arrived(self) -> Update:
        """The elastic difference alpha (x - centre), pushed with the sign that draws the centre here."""
        position = self._position()
        self._pull_back = list(torch._foreach_sub(position, self._centre))
        torch._foreach_mul_(self._pull_back, self._alpha)
        update = Update(list(torch._foreach_neg(self._pull_back)), WHOLE, worker=self._local.worker)
        update.samples, self._samples = self._samples, 0
        return update

    def offer(self, update: Update) -> Update | None:
        """Moves x by - alpha (x - centre) - lr g(x), with the gradient from before the elastic move."""
        self._step += 1
        if update.rejected:
            self._draw(self._local.weights)  # the centre has moved its share already
            return update
        self._local.conform(update)
        self._samples += update.samples
        if self._weight_decay:
            self._decay(update)
        if self._momentum:
            self._accelerated(update)
        else:
            self._draw(self._local.weights)
            self._rule.apply(update, self._state, self._context)
        self._context.samples += update.samples * self._context.workers
        return None

    def _position(self) -> list[Tensor]:
        if not self._momentum:
            return self._local.weights
        return list(
            torch._foreach_sub(self._local.weights, torch._foreach_mul(self._velocity, self._momentum))
        )

    def _draw(self, position: list[Tensor]) -> None:
        if self._pull_back is not None:
            torch._foreach_sub_(position, self._pull_back)
            self._pull_back = None

    def _decay(self, update: Update) -> None:
        pairs = zip(update.gradients, self._local.weights, strict=True)
        used = [(gradient, weight) for gradient, weight in pairs if gradient is not None]
        if used:
            gradients, weights = (list(column) for column in zip(*used, strict=True))
            torch._foreach_add_(gradients, weights, alpha=self._weight_decay)

    def _accelerated(self, update: Update) -> None:
        """Algorithm 2: v <- delta v - lr g(x + delta v), x <- x - alpha (x - centre) + v."""
        weights, delta = self._local.weights, self._momentum
        torch._foreach_sub_(weights, torch._foreach_mul(self._velocity, delta))  # back from the look-ahead
        torch._foreach_mul_(self._velocity, delta)
        self._draw(weights)
        # the rule moves a velocity as it would move weights: v <- v - lr g
        self._context.weights = self._velocity
        self._rule.apply(update, self._state, self._context)
        torch._foreach_add_(weights, self._velocity)
        torch._foreach_add_(weights, torch._foreach_mul(self._velocity, delta))


def add(total: list[Tensor | None], gradients: list[Tensor | None]) -> None:
    """Adds gradients to a sum, in place; a gradient that is None counts as zero."""
    targets: list[Tensor] = []
    addends: list[Tensor] = []
    for position, gradient in enumerate(gradients):
        if gradient is None:
            continue
        target = total[position]
        if target is None:
            total[position] = gradient
        else:
            targets.append(target)
            addends.append(gradient)
    if targets:
        torch._foreach_add_(targets, addends)


def _from(update: Update, gradients: list[Tensor | None]) -> Update:
    """A new update in the name of the step that another belongs to."""
    return Update(
        gradients,
        update.entries,
        update.version,
        update.worker,
        update.sequence,
        update.samples,
        incarnation=update.incarnation,
        buffers=update.buffers,
        versions=update.versions,
    )

"""Elastic differences to a centre: EASGD and EAMSGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from freewheel.exchanges.base import Descent, Exchange, Local, copy_back
from freewheel.rules import Rule
from freewheel.update import WHOLE, Update


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
        self._alpha, self._period, self._momentum = alpha, period, momentum
        self._weight_decay = weight_decay
        self.target = local.flat.clone()
        self._centre = local.views(self.target)
        self._velocity = [torch.zeros_like(weight) for weight in local.weights] if momentum else []
        # With momentum the rule moves the velocity as it would move weights: v <- v - lr g.
        self._descent = Descent(descent, local, self._velocity or None)
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
            self._descent.apply(update)
        return None

    def state(self, statistics: Tensor) -> dict[str, Any]:
        """Its weights, velocity and steps; the pull towards the centre lasts no longer than a step."""
        return {
            "weights": self._local.flat,
            "velocity": self._velocity,
            "descent": self._descent.state(),
            "step": self._step,
            "samples": self._samples,
        }

    def restore(self, state: Mapping[str, Any], statistics: Tensor) -> None:
        """Goes on from there."""
        self._local.flat.copy_(state["weights"])
        copy_back(self._velocity, state["velocity"])
        self._descent.restore(state["descent"])
        self._step, self._samples = state["step"], state["samples"]

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
        self._descent.apply(update)
        torch._foreach_add_(weights, self._velocity)
        torch._foreach_add_(weights, torch._foreach_mul(self._velocity, delta))

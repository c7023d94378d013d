"""Optimizers as functions ``(weights, gradient) -> weights`` with their state inside, from their formulas."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Optimizer = Callable[[Tensor, Tensor], Tensor]


def sgd(rate: float, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Heavy-ball (Polyak 1964) or Nesterov momentum, with the rate outside."""
    velocity: Tensor | float = 0.0

    def step(w: Tensor, g: Tensor) -> Tensor:
        nonlocal velocity
        velocity = momentum * velocity + g
        return w - rate * (g + momentum * velocity if nesterov else velocity)

    return step


def adagrad(rate: float, eps: float = 1e-10) -> Optimizer:
    """Duchi, Hazan and Singer 2011, with diagonal matrices."""
    total: Tensor | float = 0.0

    def step(w: Tensor, g: Tensor) -> Tensor:
        nonlocal total
        total = total + g * g
        return w - rate * g / (total.sqrt() + eps)

    return step


def adamw(
    rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, decay: float = 0.01
) -> Optimizer:
    """Loshchilov and Hutter 2019, algorithm 2."""
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    count = 0

    def step(w: Tensor, g: Tensor) -> Tensor:
        nonlocal first, second, count
        count += 1
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g * g
        unbiased, scale = first / (1 - beta1**count), second / (1 - beta2**count)
        return w - rate * decay * w - rate * unbiased / (scale.sqrt() + eps)

    return step


def delayed_nesterov(rate: float, momentum: float, period: int, c: float = 0.0) -> Optimizer:
    r"""Liu et al. 2024, algorithm 3: N pseudo-gradients share one move of the momentum.

    Every one moves the weights by :math:`\epsilon g / N` and by :math:`\epsilon c \beta m`; the N-th renews
    :math:`m` from their mean and moves by what is left of :math:`\epsilon \beta m`.
    """
    m: Tensor | float = 0.0
    buffer: Tensor | float = 0.0
    count = 0

    def step(w: Tensor, g: Tensor) -> Tensor:
        nonlocal m, buffer, count
        count += 1
        buffer = buffer + g
        if count % period:
            return w - rate * (c * momentum * m + g / period)
        m = momentum * m + buffer / period
        buffer = 0.0
        return w - rate * ((1 - c * period + c) * momentum * m + g / period)

    return step

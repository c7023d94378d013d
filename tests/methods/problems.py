"""What the methods are compared on: a noisy quadratic and a small network, as gradients of flat weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DIMENSION = 5
CURVATURE = torch.linspace(0.2, 1.0, DIMENSION, dtype=torch.float64)
ONE, UNIT = torch.ones(1, dtype=torch.float64), torch.ones(DIMENSION, dtype=torch.float64)

Examples = tuple[Tensor, Tensor]


def minima(count: int, seed: int = 0) -> list[Tensor]:
    """Minima of one noisy quadratic after the other."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, DIMENSION, generator=generator, dtype=torch.float64).unbind())


def gradient(w: Tensor, minimum: Tensor) -> Tensor:
    """Of the diagonal quadratic with this minimum."""
    return CURVATURE.to(w) * (w - minimum.to(w))


def noiseless(w: Tensor, _: object) -> Tensor:
    """Of w^2 / 2."""
    return w


def with_torch(batches: Sequence[Tensor], optimizer: Callable[..., Any], **settings: Any) -> Tensor:
    """The noisy quadratic from UNIT by an optimizer of PyTorch, one worker."""
    w = nn.Parameter(UNIT.clone())
    descent = optimizer([w], **settings)
    for batch in batches:
        w.grad = gradient(w.detach(), batch)
        descent.step()
    return w.detach()


class Point(nn.Module):
    """A module that is its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(DIMENSION))

    def forward(self) -> Tensor:
        """The weights."""
        return self.w


def quadratic_step(module: nn.Module, minimum: Tensor) -> Tensor:
    """The loss that :func:`gradient` is the gradient of."""
    loss: Tensor = 0.5 * (CURVATURE.to(minimum) * (module() - minimum) ** 2).sum()
    return loss


def network() -> nn.Module:
    """A small network without kinks, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def examples(count: int, size: int = 10) -> list[Examples]:
    """Minibatches of a classification."""
    generator = torch.Generator().manual_seed(7)
    teacher = torch.randn(6, 3, generator=generator)
    inputs = torch.randn(count, size, 6, generator=generator)
    return [(x, (x @ teacher).argmax(1)) for x in inputs]


def network_step(module: nn.Module, batch: Examples) -> Tensor:
    """Cross-entropy of a minibatch."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def flat(module: nn.Module) -> Tensor:
    """A copy of all weights, one after the other."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def gradient_of(
    module: nn.Module, step: Callable[[nn.Module, Any], Tensor]
) -> Callable[[Tensor, Any], Tensor]:
    """The gradient of a step as a function of flat weights; the module is overwritten."""

    def at(w: Tensor, batch: Any) -> Tensor:
        nn.utils.vector_to_parameters(w, module.parameters())
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(step(module, batch), list(module.parameters()))]
        )

    return at

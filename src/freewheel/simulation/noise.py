"""Noise in the place of a gradient, as from a machine that computes nonsense."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def replace_by_noise(
    gradients: Sequence[Tensor | None], scale: float, generator: torch.Generator | None = None
) -> None:
    """Replaces gradients in place by noise of a uniformly drawn direction and ``scale`` times their norm.

    Direction and norm are those of all tensors together. A gradient of zeros stays one.

    Args:
        gradients: any shapes, floating point; None stands for a weight without a gradient.
        scale: the noise's norm over the gradient's.
        generator: of the noise, on the gradients' device.

    Example:
        >>> gradients = [torch.tensor([3.0, 0.0]), None, torch.tensor([[4.0]])]
        >>> replace_by_noise(gradients, 100.0, torch.Generator().manual_seed(0))
        >>> round(torch.cat([gradients[0], gradients[2].flatten()]).norm().item(), 3)
        500.0
    """
    present = [gradient for gradient in gradients if gradient is not None]
    norm = _norm(present)
    for gradient in present:
        gradient.normal_(generator=generator)
    noise = _norm(present)
    for gradient in present:
        gradient.mul_(scale * norm / noise)


def _norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all together, in float64: a sum over millions of float32 squares would lose digits."""
    squares = [torch.linalg.vector_norm(one, dtype=torch.float64).square() for one in tensors]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

"""Gives gradients memory of their own, laid out as the weights': rules that work in place need it.

Fused kernels go over raw memory: a gradient with other strides than its weight would be added to the wrong
elements, and one that autograd has expanded would be read beyond its end. Autograd may also hand over the
same tensor for two weights (their sum, the two biases of an LSTM), which a rule that works in place would
change twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from freewheel.errors import ConfigurationError


def conform(
    gradients: list[Tensor | None],
    weights: Sequence[Tensor],
    strides: list[tuple[int, ...]],
    names: Sequence[str],
) -> None:
    """Replaces every gradient that is not laid out as its weight by a copy that is.

    Args:
        gradients: one a weight; changed in place.
        weights: what they are of.
        strides: of the weights; whoever calls often has them ready.
        names: of the weights.

    Raises:
        ConfigurationError: too many or too few gradients, or one of another shape than its weight's.

    Example:
        >>> weight, gradients = torch.zeros(2, 2), [torch.ones(()).expand(2, 2)]
        >>> conform(gradients, [weight], [weight.stride()], ["weight"])
        >>> gradients[0].stride()
        (2, 1)
    """
    if len(gradients) != len(strides):
        raise ConfigurationError(f"`gradients` must be {len(strides)}, one an entry, got {len(gradients)}")
    if _fits(gradients, strides):
        return
    seen: set[int] = set()
    for i, gradient in enumerate(gradients):
        if gradient is None:
            continue
        address = gradient.data_ptr()
        if gradient.stride() != strides[i] or address in seen:
            gradients[i] = _copied(gradient, weights[i], names[i])
        seen.add(address)


def _fits(gradients: list[Any], strides: list[tuple[int, ...]]) -> bool:
    """Whether nothing need be copied, as nearly always; maps take half the time of a loop."""
    try:
        distinct = len(set(map(Tensor.data_ptr, gradients))) == len(gradients)
        return distinct and list(map(Tensor.stride, gradients)) == strides
    except TypeError:  # a weight without a gradient
        return False


def _copied(gradient: Tensor, weight: Tensor, name: str) -> Tensor:
    if gradient.shape != weight.shape:
        raise ConfigurationError(
            f"the gradient of {name!r} must have its shape {tuple(weight.shape)}, got {tuple(gradient.shape)}"
        )
    return torch.empty_like(weight).copy_(gradient)

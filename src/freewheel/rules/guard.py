"""Guards: rules that keep harmful updates from the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.rules.base import Rule, RuleContext, State, stateless
from freewheel.schedules import number
from freewheel.update import Update

NON_FINITE = "non-finite"
"""The verdict on an update that has a NaN or an infinity in it."""


def finite(scope: Literal["update", "piece"] = "update") -> Rule:
    """Drops an update with a NaN or an infinity in any gradient; the ledger counts it as "non-finite".

    Args:
        scope: "update" drops the whole update; "piece" only the piece of it that came, which works layer-wise
            too, but then a step may be applied in part.

    Raises:
        ConfigurationError: an unknown scope.

    Example:
        >>> finite().describe
        'finite()'
    """
    if scope not in ("update", "piece"):
        raise ConfigurationError(f"`scope` must be 'update' or 'piece', got {scope!r}")

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        gradients = [gradient for gradient in update.gradients if gradient is not None]
        # The sum of squares sees every NaN and infinity but may itself overflow; only then look again,
        # exactly.
        if math.isfinite(_norm(gradients)) or _all_finite(gradients):
            return update
        context.verdict = NON_FINITE
        return None

    return Rule(scope, stateless, apply, "finite()" if scope == "update" else "finite(scope='piece')")


def clip(max_norm: float) -> Rule:
    r"""Scales the update down where its norm is too large.

    :math:`g \leftarrow g \min(1, c / (\|g\|_2 + 10^{-6}))`. The norm is over all gradients together. The same
    as ``torch.nn.utils.clip_grad_norm_``, but where that hands on NaN, or zeros for gradients whose squares
    overflow, this drops the update as "non-finite", or works in float64.

    Args:
        max_norm: the largest norm :math:`c` > 0.

    Raises:
        ConfigurationError: `max_norm` is not a finite number above zero.

    Example:
        >>> clip(1.0).describe
        'clip(max_norm=1.0)'

    References:
        Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1.
    """
    largest = _positive("max_norm", max_norm)

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        gradients = [gradient for gradient in update.gradients if gradient is not None]
        length = norm(gradients)
        if not math.isfinite(length):
            context.verdict = NON_FINITE
            return None
        scale = largest / (length + 1e-6)
        if scale < 1:
            torch._foreach_mul_(gradients, scale)
        return update

    return Rule("update", stateless, apply, f"clip(max_norm={largest!r})")


def clip_value(limit: float) -> Rule:
    r"""Cuts every element to :math:`[-c, c]`; the same as ``torch.nn.utils.clip_grad_value_``.

    A NaN stays a NaN; :func:`finite` drops it.

    Args:
        limit: the largest absolute value :math:`c` > 0.

    Raises:
        ConfigurationError: `limit` is not a finite number above zero.

    Example:
        >>> clip_value(0.5).describe
        'clip_value(limit=0.5)'

    References:
        Mikolov 2012, "Statistical language models based on neural networks" (thesis), section 3.2.2.
    """
    most = _positive("limit", limit)

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        gradients = [gradient for gradient in update.gradients if gradient is not None]
        if gradients:
            torch._foreach_clamp_min_(gradients, -most)
            torch._foreach_clamp_max_(gradients, most)
        return update

    return Rule("piece", stateless, apply, f"clip_value(limit={most!r})")


def norm(gradients: list[Tensor]) -> float:
    """The norm over all gradients together; in double precision where squares overflow."""
    length = _norm(gradients)
    if math.isfinite(length):
        return length
    return _combine([torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients])


def _norm(gradients: list[Tensor]) -> float:
    return _combine(torch._foreach_norm(gradients)) if gradients else 0.0  # the kernel refuses an empty list


def _combine(norms: Sequence[Tensor]) -> float:
    """The norm of several norms, in double precision; one copy to the host where they live on a device."""
    if norms[0].is_cpu:
        return math.hypot(*[norm.item() for norm in norms])  # a fifth of the time of stacking them
    return math.hypot(*torch.stack(list(norms)).tolist())


def _all_finite(gradients: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _positive(name: str, value: object) -> float:
    result = number(name, value, 0.0, math.inf, "1.0 is common; leave the rule out for no limit")
    if result == 0:
        raise ConfigurationError(
            f"`{name}` must be > 0, got {value!r}; use frozen() to keep the weights as they are"
        )
    return result

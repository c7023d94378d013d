"""Descents: the rules that write the weights. Each equals its ``torch.optim`` twin step by step.

Workers apply the same rule to the same state at the same time without a lock, so nothing lives in Python: all
state is tensors, changed in place. Entries without a gradient are left alone: no decay, no step counted.
Kernels go over raw memory, so a gradient must have its weight's strides, which the server sees to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from freewheel.errors import ConfigurationError
from freewheel.rules import kernels
from freewheel.rules.arguments import below_one, described, used
from freewheel.rules.base import Rule, RuleContext, Span, State, stateless
from freewheel.schedules import Rate, Schedule, as_schedule, at_least_zero
from freewheel.update import Update


def sgd(lr: Rate, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    r"""Stochastic gradient descent, with heavy-ball or Nesterov momentum.

    With gradient :math:`g`, weight decay :math:`\lambda` and momentum :math:`\mu`:
    :math:`g \leftarrow g + \lambda w`, :math:`b \leftarrow \mu b + g`,
    :math:`w \leftarrow w - \eta b`, or :math:`w \leftarrow w - \eta (g + \mu b)` for Nesterov.

    Args:
        lr: learning rate :math:`\eta` >= 0, a schedule, or a function of the samples seen.
        momentum: :math:`\mu` in [0, 1).
        nesterov: look ahead; needs momentum.
        weight_decay: L2 penalty :math:`\lambda` >= 0, added to the gradient.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> sgd(0.1, momentum=0.9).describe
        'sgd(lr=0.1, momentum=0.9)'

    References:
        Polyak 1964, equation 9; Sutskever et al. 2013, "On the importance of initialization and momentum in
        deep learning", equations 1 to 4. Departs from Sutskever as ``torch.optim.SGD`` does: the rate is
        outside the momentum, so that a changed rate acts at once, and Nesterov's gradient is taken at the
        weights themselves.
    """
    rate = as_schedule(lr)
    momentum, weight_decay = below_one("momentum", momentum), at_least_zero("weight_decay", weight_decay)
    if nesterov and momentum == 0:
        raise ConfigurationError("`nesterov`=True needs momentum, got `momentum`=0.0; use momentum=0.9, say")

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        eta = context.rate(rate)
        weights, gradients, *rest = used(update, context, *[state[name] for name in names])
        if weights:
            heavy = context.momentum(momentum)
            kernels.sgd(weights, gradients, rest[0] if rest else [], eta, heavy, nesterov, weight_decay)
        return update

    names = ("momentum",) if momentum else ()
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    return _descent(_buffers(*names), apply, described(sgd, lr=rate, **settings), rate, _heavy(momentum))


def adagrad(
    lr: Rate,
    eps: float = 1e-10,
    initial_accumulator: float = 0.0,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
) -> Rule:
    r"""Adagrad: a rate per weight that shrinks with its past gradients.

    :math:`s \leftarrow s + g^2`, :math:`w \leftarrow w - \frac{\eta}{1 + (t - 1) d} \frac{g}{\sqrt{s} +
    \epsilon}`.

    Args:
        lr: learning rate :math:`\eta` >= 0, a schedule, or a function of the samples seen.
        eps: :math:`\epsilon` >= 0.
        initial_accumulator: :math:`s` at the start, >= 0.
        lr_decay: :math:`d` >= 0; :math:`t` counts the entry's updates from 1.
        weight_decay: L2 penalty >= 0, added to the gradient.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> adagrad(0.01, eps=1e-8).describe
        'adagrad(lr=0.01, eps=1e-08)'

    References:
        Duchi, Hazan and Singer 2011, "Adaptive subgradient methods", figure 1 (diagonal matrices, no
        projection). Departs from the paper as ``torch.optim.Adagrad`` does: epsilon is added, not part of the
        sum; `lr_decay`.
    """
    rate, eps, lr_decay = as_schedule(lr), at_least_zero("eps", eps), at_least_zero("lr_decay", lr_decay)
    initial_accumulator = at_least_zero("initial_accumulator", initial_accumulator)
    weight_decay = at_least_zero("weight_decay", weight_decay)

    def init(span: Span) -> State:
        return {"sum": span.like(initial_accumulator), "steps": span.counts()}

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        eta = context.rate(rate)
        weights, gradients, sums, steps = used(update, context, state["sum"], state["steps"])
        if weights:
            kernels.count(steps)
            kernels.adagrad(weights, gradients, sums, steps, eta, eps, lr_decay, weight_decay)
        return update

    settings = {
        "initial_accumulator": initial_accumulator,
        "lr_decay": lr_decay,
        "weight_decay": weight_decay,
    }
    return _descent(init, apply, described(adagrad, lr=rate, eps=eps, **settings), rate)


def rmsprop(
    lr: Rate,
    alpha: float = 0.99,
    eps: float = 1e-8,
    momentum: float = 0.0,
    centered: bool = False,
    weight_decay: float = 0.0,
) -> Rule:
    r"""RMSProp: the gradient over the root of a running mean of its square.

    :math:`v \leftarrow \alpha v + (1 - \alpha) g^2`, :math:`d = g / (\sqrt{v} + \epsilon)`; centered
    subtracts the square of the running mean of :math:`g` from :math:`v` there; :math:`b \leftarrow \mu b +
    d`, :math:`w \leftarrow w - \eta b`.

    Args:
        lr: learning rate :math:`\eta` >= 0, a schedule, or a function of the samples seen.
        alpha: smoothing in [0, 1).
        eps: :math:`\epsilon` >= 0.
        momentum: :math:`\mu` in [0, 1).
        centered: divide by the running standard deviation.
        weight_decay: L2 penalty >= 0, added to the gradient.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> rmsprop(0.001, alpha=0.9).describe
        'rmsprop(lr=0.001, alpha=0.9)'

    References:
        Tieleman and Hinton 2012, Coursera lecture 6.5; centered: Graves 2013, arXiv:1308.0850, equations 38
        to 41. Departs as ``torch.optim.RMSprop`` does: epsilon is added after the root, where Graves has it
        inside. A centered mean square below zero, which racing workers can leave behind, counts as zero.
    """
    rate, alpha, momentum = as_schedule(lr), below_one("alpha", alpha), below_one("momentum", momentum)
    eps, weight_decay = at_least_zero("eps", eps), at_least_zero("weight_decay", weight_decay)
    names = ("square", *["mean"] * centered, *["momentum"] * (momentum > 0))

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        eta = context.rate(rate)
        weights, gradients, *buffers = used(update, context, *[state[name] for name in names])
        if weights:
            if weight_decay:
                torch._foreach_add_(gradients, weights, alpha=weight_decay)
            leaves = dict(zip(names, buffers, strict=True))
            kernels.rmsprop(weights, gradients, leaves, eta, alpha, eps, context.momentum(momentum))
        return update

    settings = {"eps": eps, "momentum": momentum, "centered": centered, "weight_decay": weight_decay}
    describe = described(rmsprop, lr=rate, alpha=alpha, **settings)
    return _descent(_buffers(*names), apply, describe, rate, _heavy(momentum))


def adam(
    lr: Rate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Rule:
    r"""Adam: RMSProp with momentum, both corrected for their start from zero.

    :math:`m \leftarrow \beta_1 m + (1 - \beta_1) g`, :math:`v \leftarrow \beta_2 v + (1 - \beta_2) g^2`,
    :math:`w \leftarrow w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}`.

    Args:
        lr: learning rate :math:`\eta` >= 0, a schedule, or a function of the samples seen.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon` >= 0.
        weight_decay: L2 penalty >= 0, added to the gradient; :func:`adamw` decays the weights instead.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> adam(0.001, betas=(0.9, 0.99)).describe
        'adam(lr=0.001, betas=(0.9, 0.99))'

    References:
        Kingma and Ba 2015, arXiv:1412.6980, algorithm 1. Departs from it in that :math:`t` is counted for
        each entry by itself: entries that a batch does not use are not updated.
    """
    return _adam_rule(adam, lr, betas, eps, weight_decay, decoupled=False)


def adamw(
    lr: Rate, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
) -> Rule:
    r"""Adam with decoupled weight decay: :math:`w \leftarrow (1 - \eta \lambda) w` before each step.

    Args:
        lr: learning rate :math:`\eta` >= 0, a schedule, or a function of the samples seen.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon` >= 0.
        weight_decay: :math:`\lambda` >= 0.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> adamw(0.001, weight_decay=0.1).describe
        'adamw(lr=0.001, weight_decay=0.1)'

    References:
        Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2. Departs from it as ``torch.optim.AdamW``
        does: the decay is multiplied by the whole learning rate, not by the schedule's multiplier alone.
    """
    return _adam_rule(adamw, lr, betas, eps, weight_decay, decoupled=True)


def frozen() -> Rule:
    """Leaves the weights as they are: for parts of a network, in :func:`~freewheel.rules.partition`.

    Example:
        >>> frozen().describe
        'frozen()'
    """
    return _descent(stateless, lambda update, state, context: update, "frozen()")


def _adam_rule(
    factory: Callable[..., Rule],
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Rule:
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ConfigurationError(f"`betas` must be two numbers, got {betas!r}; (0.9, 0.999) is common")
    rate, pair = as_schedule(lr), (below_one("betas[0]", betas[0]), below_one("betas[1]", betas[1]))
    eps, weight_decay = at_least_zero("eps", eps), at_least_zero("weight_decay", weight_decay)
    names = ("mean", "square", "steps")

    def init(span: Span) -> State:
        return {"mean": span.like(), "square": span.like(), "steps": span.counts()}

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        eta = context.rate(rate)
        weights, gradients, means, squares, steps = used(update, context, *[state[name] for name in names])
        if weights:
            kernels.count(steps)
            now = context.momentum(pair[0]), pair[1]
            kernels.adam(weights, gradients, means, squares, steps, eta, now, eps, weight_decay, decoupled)
        return update

    describe = described(factory, lr=rate, betas=pair, eps=eps, weight_decay=weight_decay)
    return _descent(init, apply, describe, rate, ("betas", pair) if pair[0] else None)


def _heavy(momentum: float) -> tuple[str, float] | None:
    return ("momentum", momentum) if momentum else None


def _buffers(*names: str) -> Callable[[Span], State]:
    return lambda span: {name: span.like() for name in names}


def _descent(
    init: Callable[[Span], State],
    apply: Callable[[Update, State, RuleContext], Update],
    describe: str,
    rate: Schedule | None = None,
    momentum: tuple[str, Any] | None = None,
) -> Rule:
    return Rule("piece", init, apply, describe, descends=True, rate=rate, momentum=momentum)

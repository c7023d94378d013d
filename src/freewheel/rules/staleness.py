"""Staleness: rules for gradients that come from weights which others have changed since."""

from __future__ import annotations

import torch
from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.rules import kernels
from freewheel.rules.arguments import below_one, described, present, used, whole
from freewheel.rules.base import Rule, RuleContext, Span, State, stateless
from freewheel.schedules import Rate, as_schedule, at_least_zero, number
from freewheel.update import Update

EXPIRED = "expired"
"""The verdict on an update that is staler than :func:`expire` lets through."""

EPSILON = 1e-7  # under the root of the adaptive strength
DECAY = 0.95


def damp(power: float = 1.0) -> Rule:
    r"""Divides a stale gradient by a power of its staleness, which is to divide its learning rate.

    :math:`g \leftarrow g / \max(1, \tau)^p` with staleness :math:`\tau`: an update that is fresh, or late by
    one, is applied in full.

    Args:
        power: :math:`p` >= 0; 1 is the paper's rule, 0.5 is milder.

    Raises:
        ConfigurationError: `power` is negative or not finite.

    Example:
        >>> damp(0.5).describe
        'damp(power=0.5)'

    References:
        Zhang, Gupta, Lian and Liu 2016, arXiv:1511.05950, section 3.2: the rate over the staleness, and the
        rate itself where that is 0. Departs from the paper in the power; and the gradient is scaled, so that
        with momentum or an adaptive descent the earlier, fresher gradients keep their share.
    """
    power = at_least_zero("power", power, "1.0 divides the learning rate by the staleness")

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        gradients = present(update)
        if context.staleness > 1 and gradients:
            torch._foreach_mul_(gradients, context.staleness**-power)
        return update

    return Rule("piece", stateless, apply, described(damp, power=power))


def expire(max_staleness: int) -> Rule:
    """Drops an update that is too stale; the ledger counts it as "expired".

    Args:
        max_staleness: the largest staleness that is let through, >= 0.

    Raises:
        ConfigurationError: `max_staleness` is no whole number >= 0.

    Example:
        >>> expire(8).describe
        'expire(max_staleness=8)'
    """
    remedy = "leave the rule out for no limit, or use stale_synchronous() to make fast workers wait"
    most = whole("max_staleness", max_staleness, 0, remedy)

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        if context.staleness <= most:
            return update
        context.verdict = EXPIRED
        return None

    # the whole: pieces of one update may meet shards of different ages, and would be applied in part
    return Rule("update", stateless, apply, described(expire, max_staleness=most))


def delay_compensate(strength: float, adaptive: bool = False, decay: float = DECAY) -> Rule:
    r"""Delay compensation: estimates what the gradient would be at the weights of now.

    A Taylor expansion around the weights :math:`w_0` that the gradient was computed at, with the diagonal of
    :math:`g g^\top` for the Hessian: :math:`g \leftarrow g + \lambda g \odot g \odot (w - w_0)`. Adaptive
    takes :math:`\lambda / \sqrt{v + \epsilon}` per weight, with :math:`v \leftarrow \rho v + (1 - \rho) g^2`
    and :math:`\epsilon = 10^{-7}`.

    Args:
        strength: :math:`\lambda` >= 0; the paper takes 0.04, or 2 for adaptive.
        adaptive: divide the strength by the root of the mean square of the gradients (DC-ASGD-a).
        decay: :math:`\rho` in [0, 1) of that mean.

    Raises:
        ConfigurationError: an argument out of its range, or a decay without `adaptive`; and when an update
            comes without ``pulled``.

    Example:
        >>> delay_compensate(2.0, adaptive=True).describe
        'delay_compensate(strength=2.0, adaptive=True)'

    References:
        Zheng et al. 2017, arXiv:1609.08326, equation 10 and algorithm 2. Departs from algorithm 2 in that the
        weights :math:`w_0` come with the update, where the paper's server keeps a backup for every worker.
    """
    strength = at_least_zero("strength", strength, "0.04 is the paper's, or 2.0 if adaptive")
    decay = below_one("decay", decay, "0.95 is the paper's")
    if decay != DECAY and not adaptive:
        raise ConfigurationError(f"`decay`={decay} needs adaptive=True; leave it out for a constant strength")

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        leaves = [state["square"]] if adaptive else []
        weights, gradients, pulled, *squares = used(update, context, _pulled(update), *leaves)
        if gradients:
            correction = list(torch._foreach_sub(weights, pulled))
            torch._foreach_mul_(correction, gradients)  # in this order a square that overflows meets no zero
            torch._foreach_mul_(correction, gradients)
            if adaptive:
                torch._foreach_div_(correction, _roots(squares[0], gradients, decay))
            torch._foreach_add_(gradients, correction, alpha=strength)
        return update

    settings = {"strength": strength, "adaptive": adaptive, "decay": decay}
    return Rule(
        scope="piece",
        init=lambda span: {"square": span.like()} if adaptive else {},
        apply=apply,
        describe=described(delay_compensate, **settings),
        needs_pulled=True,
    )


def delayed_nesterov(lr: Rate, momentum: float = 0.9, *, buffer: int, activation: float = 0.0) -> Rule:
    r"""Nesterov momentum that is renewed once in :math:`N` updates, from their mean.

    Every update is applied at once, at :math:`1/N` of the rate; the momentum :math:`m` waits:

    .. math::
        \Delta &\leftarrow \Delta + g \\
        m &\leftarrow \beta m + \Delta / N, \quad \Delta \leftarrow 0
            &&\text{(each } N \text{th update only)} \\
        w &\leftarrow w - \eta (\kappa \beta m + g / N), &&\kappa = c,
            \text{ or } 1 - c N + c \text{ at the } N\text{th}

    With N = 1 it is Nesterov's momentum as in :func:`~freewheel.rules.sgd`. Every entry counts its own
    updates: those that brought a gradient for it.

    Args:
        lr: learning rate :math:`\eta` >= 0, a schedule, or a function of the samples seen.
        momentum: :math:`\beta` in [0, 1).
        buffer: :math:`N` >= 1; the number of workers is a good choice.
        activation: :math:`c` in [0, 1/N], the share of the momentum that is applied between renewals.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> delayed_nesterov(0.7, buffer=4).describe
        'delayed_nesterov(lr=0.7, buffer=4)'

    References:
        Liu et al. 2024, arXiv:2401.09135, algorithm 3 (delayed Nesterov update).
    """
    rate, beta = as_schedule(lr), below_one("momentum", momentum)
    size = whole("buffer", buffer, 1, "the number of workers is a good choice")
    remedy = "0.0 applies the momentum at every `buffer`-th update only, 1/`buffer` evenly"
    share = number("activation", activation, 0.0, 1 / size, remedy, closed=True)

    def init(span: Span) -> State:
        return {"momentum": span.like(), "sum": span.like(), "waiting": span.counts()}

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        eta = context.rate(rate)
        columns = used(update, context, state["momentum"], state["sum"], state["waiting"])
        if columns[0]:
            weights, gradients, _, sums, waiting = columns
            kernels.count(waiting)
            torch._foreach_add_(sums, gradients)
            torch._foreach_add_(weights, gradients, alpha=-eta / size)
            # >=, not ==: racing workers may both count before either of them looks
            full = [count.item() >= size for count in waiting]
            _renew(_where(columns, full), beta, size)
            _push(_where(columns, full), eta * beta * (1 - share * size + share))
            _push(_where(columns, [not due for due in full]), eta * beta * share)
        return update

    settings = {"momentum": beta, "buffer": size, "activation": share}
    return Rule(
        "piece", init, apply, described(delayed_nesterov, lr=rate, **settings), descends=True, rate=rate
    )


def momentum_under_staleness(total: float, workers: int) -> float:
    r"""The explicit momentum that adds up to a total with what asynchrony brings of its own.

    Where steps take exponentially distributed times, the mean of asynchronous SGD with :math:`W` workers has
    a momentum of :math:`1 - 1/W` without any being asked for; what is left to ask for is
    :math:`\max(0, \mu - (1 - 1/W))`. The theory's answer; see
    :func:`freewheel.methods.asynchronous_momentum` for the choice that Hogwild! makes, from stability.

    Args:
        total: the momentum :math:`\mu` that one worker would get, in [0, 1).
        workers: :math:`W` >= 1.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> [round(momentum_under_staleness(0.9, workers), 3) for workers in (1, 2, 4, 8, 16)]
        [0.9, 0.4, 0.15, 0.025, 0.0]

    References:
        Mitliagkas, Zhang, Hadjis and Re 2016, arXiv:1605.09774: the implicit momentum
        of the queueing model.
    """
    count = whole("workers", workers, 1, "give the number of workers that push")
    return max(0.0, below_one("total", total) - (1 - 1 / count))


def _pulled(update: Update) -> list[Tensor]:
    if update.pulled is None:
        raise ConfigurationError(
            "`update.pulled` is None, but delay_compensate() needs the weights that the gradient was computed"
            " at; use a method whose workers compute on copies, and put the rule before any that aggregates"
        )
    return update.pulled


def _roots(squares: list[Tensor], gradients: list[Tensor], decay: float) -> list[Tensor]:
    """The roots of the mean squares, renewed with these gradients."""
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - decay)
    roots = list(torch._foreach_add(squares, EPSILON))
    torch._foreach_sqrt_(roots)
    return roots


def _where(columns: list[list[Tensor]], chosen: list[bool]) -> list[list[Tensor]]:
    return [[value for value, wanted in zip(column, chosen, strict=True) if wanted] for column in columns]


def _renew(columns: list[list[Tensor]], beta: float, size: int) -> None:
    _, _, momenta, sums, waiting = columns
    if momenta:
        torch._foreach_mul_(momenta, beta)
        torch._foreach_add_(momenta, sums, alpha=1 / size)
        torch._foreach_zero_([*sums, *waiting])


def _push(columns: list[list[Tensor]], step: float) -> None:
    weights, _, momenta, *_ = columns
    if weights and step:
        torch._foreach_add_(weights, momenta, alpha=-step)

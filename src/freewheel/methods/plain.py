"""One gradient, one push: synchronous SGD, Hogwild!, stale synchronous, delay-compensated."""

from __future__ import annotations

from functools import partial
from typing import Any

from freewheel.exchanges import Fresh
from freewheel.gates import barrier, bounded, free
from freewheel.methods.base import (
    DEFAULT_MOMENTUM,
    Method,
    check_whole,
    checked_granularity,
    checked_rule,
    own_rule,
    plain_sgd,
    rate_of,
)
from freewheel.rules import Rule, chain, sgd
from freewheel.rules.staleness import delay_compensate
from freewheel.schedules import Rate
from freewheel.update import Granularity


def synchronous(
    lr: Rate | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    *,
    nesterov: bool | None = None,
    rule: Rule | None = None,
    granularity: Granularity = "model",
    backup_workers: int = 0,
    compression: Rule | None = None,
) -> Method:
    """Bulk-synchronous SGD: all workers compute on the same weights, and their mean gradient is applied.

    The baseline. A round takes one minibatch per worker; gradients are summed in the order of the workers,
    weighted by samples, so W workers with batch b equal one worker with batch W*b.

    With ``backup_workers=b`` a round is complete when all but b of the workers have pushed; a gradient that
    comes later is dropped ("late"), and its worker begins the next round (Chen et al. 2016, algorithms 3 and
    4).

    Args:
        lr: learning rate, or a schedule of the samples seen. None is 0.02, annealed over the planned samples
            (:func:`freewheel.schedules.annealed`).
        momentum: heavy-ball momentum in [0, 1); None is 0.9.
        weight_decay: L2 penalty; None is 0.
        nesterov: Nesterov momentum; None is False.
        rule: what the server does with the mean gradient, in place of SGD with the above.
        granularity: "model" or "layer".
        backup_workers: stragglers that a round does not wait for, fewer than the workers.
        compression: what a worker does to its gradient before it pushes it, such as ``rules.top_k(0.01)``.

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    References:
        Chen, Pan, Monga, Bengio, Jozefowicz 2016, arXiv:1604.00981. Departs from it in that the server counts
        workers, not parameter-server tokens, and that the batch of a dropped gradient is not computed again.

    Example:
        >>> synchronous(lr=0.1).gate.describe
        'barrier()'
    """
    check_whole("backup_workers", backup_workers, 0, "0 waits for everybody")
    chosen = own_rule(rule, lr, momentum, weight_decay, nesterov)
    if chosen is None:
        heavy = DEFAULT_MOMENTUM if momentum is None else momentum
        chosen = sgd(rate_of(lr), heavy, bool(nesterov), weight_decay or 0.0)
    rule_for_all = chosen
    copies = backup_workers or compression is not None
    return Method(
        "synchronous",
        barrier() if not backup_workers else free(),
        True,
        lambda workers: rule_for_all,
        checked_granularity(granularity),
        _settings(chosen, backup_workers=backup_workers, compression=compression),
        exchange=Fresh if copies else None,
        leases="queue" if backup_workers else "fixed",
        backup=backup_workers,
        compression=_compression(compression),
    )


def hogwild(
    lr: Rate | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    *,
    nesterov: bool | None = None,
    rule: Rule | None = None,
    granularity: Granularity = "model",
) -> Method:
    """Hogwild!: every worker reads and writes the shared weights without locks (Recht et al. 2011).

    Departs from the paper in two ways: gradients are dense minibatch gradients, and the update may have
    momentum, whose state is shared and raced on like the weights.

    Args:
        lr: learning rate, or a schedule of the samples seen. None is 0.02, annealed over the planned samples
            (:func:`freewheel.schedules.annealed`).
        momentum: explicit momentum in [0, 1). None chooses it from the number of workers, see
            :func:`asynchronous_momentum`: one worker gets the synchronous default.
        weight_decay: L2 penalty; None is 0.
        nesterov: Nesterov momentum, which bears staleness better. None takes it with several workers.
        rule: what the server does with an update, in place of SGD with the above.
        granularity: "model", or "layer": each parameter is updated in the backward pass, the moment its
            gradient exists.

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    References:
        Recht, Re, Wright, Niu 2011, arXiv:1106.5730. Momentum: Mitliagkas et al. 2016, arXiv:1605.09774.

    Example:
        >>> hogwild(lr=0.1, momentum=0.5).rule_for(2).describe
        'sgd(lr=0.1, momentum=0.5, nesterov=True)'
    """
    own = own_rule(rule, lr, momentum, weight_decay, nesterov)

    def choose(workers: int) -> Rule:
        if own is not None:
            return own
        chosen = asynchronous_momentum(DEFAULT_MOMENTUM, workers) if momentum is None else momentum
        ahead = workers > 1 and chosen > 0 if nesterov is None else nesterov
        return sgd(rate_of(lr), chosen, ahead, weight_decay or 0.0)

    return Method("hogwild", free(), False, choose, checked_granularity(granularity), _settings(choose(2)))


def asynchronous_momentum(total: float, workers: int) -> float:
    r"""The explicit momentum that leaves room for the momentum that asynchrony adds of its own.

    Asynchrony acts like momentum (Mitliagkas et al. 2016, section 3), and a gradient that is W-1 updates late
    keeps a quadratic of curvature h stable only while about :math:`h \eta / (1 - \mu) < 1 / (W - 1)`. The
    synchronous total is kept for two workers, where Nesterov's look-ahead makes up for the one late update;
    beyond, the effective rate :math:`\eta / (1 - \mu)` falls with 1/W:

    .. math:: 1 - \mu_W = (1 - \mu) \max(1, W / 2)

    Args:
        total: the momentum that one worker would get, in [0, 1).
        workers: W >= 1.

    Example:
        >>> [round(asynchronous_momentum(0.9, workers), 2) for workers in (1, 2, 4, 8, 32)]
        [0.9, 0.9, 0.8, 0.6, 0.0]
    """
    return max(0.0, 1 - (1 - total) * max(1.0, workers / 2))


def stale_synchronous(
    bound: int = 3,
    lr: Rate | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    *,
    nesterov: bool | None = None,
    rule: Rule | None = None,
    in_flight: int = 0,
    compression: Rule | None = None,
) -> Method:
    """Stale synchronous parallel: nobody is more than `bound` steps ahead of the slowest worker.

    Every worker pulls a copy of the weights before a step and pushes its gradient after it, which is applied
    at once. ``bound=0`` lets workers wait for each other, but, other than :func:`synchronous`, applies
    gradients one by one.

    Args:
        bound: steps of lead, >= 0. Between a worker's pull and its push, every other worker can push at most
            ``2 * bound + 1`` updates, so staleness never passes (W - 1)(2 bound + 1); each push in flight
            adds at most 2 W - 1 to that.
        lr: as in :func:`hogwild`.
        momentum: as in :func:`hogwild`.
        weight_decay: L2 penalty; None is 0.
        nesterov: as in :func:`hogwild`.
        rule: what the server does with an update, in place of SGD with the above.
        in_flight: pushes that may be under way while the next step computes.
        compression: what a worker does to its gradient before it pushes it, such as ``rules.top_k(0.01)``.

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    References:
        Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel parameter server",
        section 3. Departs from it in that a pull sees all updates that have arrived, not only those older
        than the bound: fresher reads, which the paper allows.

    Example:
        >>> stale_synchronous(2, lr=0.1, momentum=0.0).gate.describe
        'bounded(2)'
    """
    plain = hogwild(lr, momentum, weight_decay, nesterov=nesterov, rule=rule)
    return Method(
        "stale_synchronous",
        bounded(bound),
        False,
        plain.rule,
        settings=_settings(plain.rule(2), bound=bound, in_flight=in_flight, compression=compression),
        exchange=partial(Fresh, keeps=plain.rule(2).needs_pulled),
        keeps_pulled=in_flight == 0,  # the next pull would overwrite the weights of a push under way
        in_flight=in_flight,
        compression=_compression(compression),
    )


def delay_compensated(
    lr: Rate | None = None,
    strength: float = 0.04,
    *,
    adaptive: bool = False,
    momentum: float = 0.0,
    weight_decay: float | None = None,
    rule: Rule | None = None,
    compression: Rule | None = None,
) -> Method:
    r"""DC-ASGD: a late gradient is corrected to what it would be at the weights of today.

    :math:`w \leftarrow w - \eta (g + \lambda\, g \odot g \odot (w - w_{pulled}))`: the first term of the
    Taylor expansion of the gradient, with :math:`g \odot g` for the diagonal of the Hessian.

    Args:
        lr: learning rate; None is 0.02, annealed over the planned samples.
        strength: :math:`\lambda`, >= 0; of the adaptive variant, :math:`\lambda_0`.
        adaptive: divide the strength by the root of the mean square of the gradient.
        momentum: of the server's SGD; the paper has none.
        weight_decay: L2 penalty; None is 0.
        rule: what the server does with the compensated gradient, in place of SGD.
        compression: what a worker does to its gradient before it pushes it.

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    References:
        Zheng et al. 2017, arXiv:1609.08326, algorithms 1 and 2, equation 10. Departs from them in that the
        worker sends the weights that it used along by reference, where they store a copy at the server.

    Example:
        >>> delay_compensated(0.1, strength=0.5).rule_for(4).describe
        'delay_compensate(strength=0.5) > sgd(lr=0.1)'
    """
    own = own_rule(rule, lr, momentum or None, weight_decay)
    descent = plain_sgd(lr, weight_decay, momentum) if own is None else own
    chosen = chain(delay_compensate(strength, adaptive=adaptive), descent)
    return Method(
        "delay_compensated",
        free(),
        False,
        lambda workers: chosen,
        settings=_settings(chosen, compression=compression),
        keeps_pulled=True,
        exchange=partial(Fresh, keeps=True),
        compression=_compression(compression),
    )


def _compression(rule: Rule | None) -> Rule | None:
    return None if rule is None else checked_rule("compression", rule, descends=False)


def _settings(rule: Rule, **further: Any) -> dict[str, Any]:
    chosen = {name: getattr(value, "describe", value) for name, value in further.items() if value}
    return {"rule": rule.describe, **chosen}

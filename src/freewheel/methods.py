"""Named methods: how workers and the server relate.

A method is data: a gate (who may start a step), whether updates are gathered into rounds, the granularity of
an update, and the rule that the server applies. The functions below are the named combinations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from freewheel.errors import ConfigurationError
from freewheel.gates import Gate, barrier, free
from freewheel.rules import Rule, sgd
from freewheel.schedules import Rate, annealed
from freewheel.update import Granularity

DEFAULT_LR = 0.02
DEFAULT_MOMENTUM = 0.9


@dataclass(frozen=True)
class Method:
    """How workers and the server relate.

    Attributes:
        name: for tables and plots.
        gate: who may start a step.
        rounds: the server waits for one update of every active worker and applies their mean.
        rule: number of workers -> what the server does with an update.
        granularity: "model", or "layer" for one update per parameter in the backward pass.
        settings: what the user chose, for the report.
    """

    name: str
    gate: Gate
    rounds: bool
    rule: Callable[[int], Rule]
    granularity: Granularity = "model"
    settings: dict[str, Any] = field(default_factory=dict)

    def rule_for(self, workers: int) -> Rule:
        """The server's rule for this number of workers.

        Raises:
            ConfigurationError: the rule needs whole updates and the granularity is "layer".
        """
        rule = self.rule(workers)
        if self.granularity == "layer" and rule.scope == "update":
            raise ConfigurationError(
                f"`rule` {rule.describe} needs the whole gradient, but granularity='layer' applies it piece"
                " by piece; use clip_value() in place of clip() or finite(), or granularity='model'"
            )
        return rule


def synchronous(
    lr: Rate | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    *,
    nesterov: bool | None = None,
    rule: Rule | None = None,
    granularity: Granularity = "model",
) -> Method:
    """Bulk-synchronous SGD: all workers compute on the same weights, and their mean gradient is applied.

    The baseline. A round takes one minibatch per worker; gradients are summed in the order of the workers,
    weighted by samples, so W workers with batch b equal one worker with batch W*b.

    Args:
        lr: learning rate, or a schedule of the samples seen. None is 0.02, annealed over the planned samples
            (:func:`freewheel.schedules.annealed`).
        momentum: heavy-ball momentum in [0, 1); None is 0.9.
        weight_decay: L2 penalty; None is 0.
        nesterov: Nesterov momentum; None is False.
        rule: what the server does with the mean gradient, in place of SGD with the above.
        granularity: "model" or "layer".

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    Example:
        >>> synchronous(lr=0.1).gate.describe
        'barrier()'
    """
    chosen = _own(rule, lr, momentum, weight_decay, nesterov)
    if chosen is None:
        heavy = DEFAULT_MOMENTUM if momentum is None else momentum
        chosen = sgd(_rate(lr), heavy, bool(nesterov), weight_decay or 0.0)
    return Method(
        "synchronous", barrier(), True, lambda workers: chosen, _granularity(granularity), _settings(chosen)
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
    own = _own(rule, lr, momentum, weight_decay, nesterov)

    def choose(workers: int) -> Rule:
        if own is not None:
            return own
        chosen = asynchronous_momentum(DEFAULT_MOMENTUM, workers) if momentum is None else momentum
        ahead = workers > 1 and chosen > 0 if nesterov is None else nesterov
        return sgd(_rate(lr), chosen, ahead, weight_decay or 0.0)

    return Method("hogwild", free(), False, choose, _granularity(granularity), _settings(choose(2)))


def asynchronous_momentum(total: float, workers: int) -> float:
    r"""The explicit momentum that leaves room for the momentum that asynchrony adds of its own.

    Asynchrony acts like momentum (Mitliagkas et al. 2016, theorem 4), and a gradient that is W-1 updates late
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


METHODS: dict[str, Callable[[], Method]] = {"hogwild": hogwild, "synchronous": synchronous}


def by_name(method: str | Method | None) -> Method:
    """The method itself, or the one of this name with its defaults; None is Hogwild!.

    Raises:
        ConfigurationError: an unknown name, or something that is no method.
    """
    if isinstance(method, Method):
        return method
    if method is None:
        return hogwild()
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    hint = "; call it first: method=freewheel.hogwild()" if callable(method) else ""
    raise ConfigurationError(
        f"`method` must be one of {', '.join(METHODS)} or a Method, got {method!r}{hint}"
    )


def _checked(rule: Rule) -> Rule:
    if not isinstance(rule, Rule):
        raise ConfigurationError(f"`rule` must be a Rule, such as freewheel.rules.adam(1e-3), got {rule!r}")
    return rule


def _own(rule: Rule | None, *settings: object) -> Rule | None:
    """The user's rule, if there is one; settings of SGD beside it would be ignored silently."""
    if rule is not None and any(setting is not None for setting in settings):
        raise ConfigurationError(
            "`rule` takes the place of `lr`, `momentum`, `weight_decay` and `nesterov`; give them to the"
            " rule: rule=sgd(lr, momentum)"
        )
    return None if rule is None else _checked(rule)


def _rate(lr: Rate | None) -> Rate:
    return annealed(DEFAULT_LR) if lr is None else lr


def _granularity(value: Granularity) -> Granularity:
    if value not in ("model", "layer"):
        raise ConfigurationError(f"`granularity` must be 'model' or 'layer', got {value!r}")
    return value


def _settings(rule: Rule) -> dict[str, Any]:
    return {"rule": rule.describe}

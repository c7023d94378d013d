"""What a method is: how workers and the server relate, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from freewheel.errors import ConfigurationError
from freewheel.exchanges import ExchangeMaker
from freewheel.gates import Gate
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
        gate: who may start a step; rounds have a gate of their own: nobody starts before its round is over.
        rounds: the server waits for one update of every active worker and applies their mean.
        rule: number of workers -> what the server does with an update.
        granularity: "model", or "layer" for one update per parameter in the backward pass.
        settings: what the user chose, for the report.
        exchange: the worker's half, made for a worker that has a copy of the weights. None: workers
            read the live weights and push every gradient (Hogwild!).
        leases: "queue": whoever is ready takes the next batch. "fixed": round r owns the batches rW to
            rW+W-1.
        backup: workers that a round does not wait for.
        in_flight: pushes that may be under way while the next step computes.
        compression: a rule that workers run on what they push.
        keeps_pulled: updates carry the weights that they were computed at, for rules that compare with them.
        inner: the workers' own descent, where the learning rate is theirs and not the server's.
    """

    name: str
    gate: Gate
    rounds: bool
    rule: Callable[[int], Rule]
    granularity: Granularity = "model"
    settings: dict[str, Any] = field(default_factory=dict)
    exchange: ExchangeMaker | None = None
    leases: Literal["queue", "fixed"] = "queue"
    backup: int = 0
    in_flight: int = 0
    compression: Rule | None = None
    keeps_pulled: bool = False
    inner: Rule | None = None

    def __post_init__(self) -> None:
        check_whole("in_flight", self.in_flight, 0, "0 waits for each push")
        if self.granularity == "layer" and (self.exchange is not None or self.compression is not None):
            raise ConfigurationError(
                f"`granularity`='layer' updates the live weights in the backward pass, but {self.name} keeps"
                " gradients on the worker; use granularity='model'"
            )
        if self.compression is not None and self.compression.exclusive:
            raise ConfigurationError(
                f"`compression` must hand on every update, but {self.compression.describe} keeps some back;"
                " aggregate at the server: rule=chain(average(2), sgd(lr))"
            )
        if self.exchange is None and (self.in_flight or self.compression is not None):
            name = "in_flight" if self.in_flight else "compression"
            raise ConfigurationError(
                f"`{name}` needs workers with a copy of the weights, but {self.name} reads them live; use"
                " downpour() or stale_synchronous(), say"
            )

    def rule_for(self, workers: int) -> Rule:
        """The server's rule for this number of workers.

        Raises:
            ConfigurationError: the rule needs whole updates and the granularity is "layer"; the rule needs
                the weights that the gradient was computed at and the method does not keep them; more backup
                workers than workers.
        """
        rule = self.rule(workers)
        if self.granularity == "layer" and rule.scope == "update":
            raise ConfigurationError(
                f"`rule` {rule.describe} needs the whole gradient, but granularity='layer' applies it piece"
                " by piece; use clip_value() in place of clip() or finite(), or granularity='model'"
            )
        if rule.needs_pulled and not self.keeps_pulled:
            raise ConfigurationError(
                f"`rule` {rule.describe} compares with the weights that a worker pulled, which {self.name}"
                " does not keep; use delay_compensated(), or stale_synchronous() with in_flight=0"
            )
        if self.backup >= workers > 1 or (self.backup and workers == 1):
            raise ConfigurationError(
                f"`backup_workers` is {self.backup} of {workers} workers; a round must wait for at least one:"
                f" use at most {max(workers - 1, 0)}"
            )
        return rule


def check_whole(name: str, value: Any, least: int, remedy: str) -> int:
    """The value if it is a whole number, and large enough.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"`{name}` must be a whole number >= {least}, got {value!r}; {remedy}")
    return value


def checked_rule(name: str, rule: Any, descends: bool | None = True) -> Rule:
    """The value if it is a rule, and writes the weights or not, as it must; None leaves that to the server.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(rule, Rule):
        raise ConfigurationError(f"`{name}` must be a Rule, such as freewheel.rules.adam(1e-3), got {rule!r}")
    if descends is not None and rule.descends != descends:
        must = "must write the weights; end it with a descent" if descends else "must not write the weights"
        raise ConfigurationError(f"`{name}` {must}, got {rule.describe}")
    return rule


def own_rule(rule: Rule | None, *settings: object) -> Rule | None:
    """The user's rule, if there is one; settings of SGD beside it would be ignored silently."""
    if rule is not None and any(setting is not None for setting in settings):
        raise ConfigurationError(
            "`rule` takes the place of `lr`, `momentum`, `weight_decay` and `nesterov`; give them to the"
            " rule: rule=sgd(lr, momentum)"
        )
    return None if rule is None else checked_rule("rule", rule, descends=None)


def rate_of(lr: Rate | None) -> Rate:
    """The user's learning rate, or the default, annealed over the planned samples."""
    return annealed(DEFAULT_LR) if lr is None else lr


def plain_sgd(lr: Rate | None, weight_decay: float | None = None, momentum: float | None = None) -> Rule:
    """SGD with the user's settings; no momentum unless asked for."""
    return sgd(rate_of(lr), momentum or 0.0, weight_decay=weight_decay or 0.0)


def checked_granularity(value: Granularity) -> Granularity:
    """The value if it is a granularity.

    Raises:
        ConfigurationError: it is not.
    """
    if value not in ("model", "layer"):
        raise ConfigurationError(f"`granularity` must be 'model' or 'layer', got {value!r}")
    return value

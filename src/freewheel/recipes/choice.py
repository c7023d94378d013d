"""A method by its name, with the settings that a user chose and the defaults that a model needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from freewheel import schedules
from freewheel.errors import ConfigurationError
from freewheel.methods import METHODS, Method, diloco
from freewheel.recipes.settings import SCHEDULES, Optimization, choose
from freewheel.rules import Rule, adamw, delayed_nesterov, sgd
from freewheel.schedules import Rate

_OWN_OPTION = {name: f"--{name}" for name in ("lr", "momentum", "granularity", "compression")}

OUTER_MOMENTUM = 0.5

Tuned = Mapping[str, Mapping[str, Any]]
"""Method -> the settings in which a model departs from the method's defaults; "lr" is a number."""


def method_maker(
    chosen: Optimization, lr: float, arguments: Mapping[str, Any], tuned: Tuned | None = None
) -> Callable[[str], Method]:
    """Name -> the method with these settings.

    Args:
        chosen: by the user.
        lr: the model's default learning rate.
        arguments: of ``fit``; they say whether the run has an end that a schedule can go by.
        tuned: the model's defaults for single methods.

    Raises:
        ConfigurationError: a schedule without a known end, or an unknown schedule; and, when a method is
            made, a setting that it does not have: the message lists those that it has.
    """
    has_end = arguments["epochs"] is not None or arguments["max_samples"] is not None
    schedule(chosen.schedule, lr if chosen.lr is None else chosen.lr, has_end)
    defaults = tuned or {}

    def make(name: str) -> Method:
        choose("method", name, tuple(METHODS), "a recipe")
        own = dict(defaults.get(name, {}))
        first = own.pop("lr", lr)
        rate = schedule(chosen.schedule, first if chosen.lr is None else chosen.lr, has_end)
        given = own | _explicit(name, chosen) | _of(name, chosen.settings)
        if name == "diloco":
            return _diloco(rate, given)
        return cast(Callable[..., Method], METHODS[name])(lr=rate, **given)

    return make


def settable(name: str) -> tuple[str, ...]:
    """The settings of a method that are numbers or yes and no, without those that have options of their own.

    Example:
        >>> settable("downpour")
        ('push_every', 'pull_every', 'warm_start', 'in_flight')
    """
    parameters = inspect.signature(METHODS[name]).parameters.values()
    return tuple(
        one.name for one in parameters if "Rule" not in str(one.annotation) and one.name not in _OWN_OPTION
    )


def check_settings(settings: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Refuses a setting that none of these methods has.

    Args:
        settings: by "bound", or by "stale_synchronous.bound" for one method of several.
        names: the methods.

    Raises:
        ConfigurationError: an unknown setting or method; the message lists the valid ones.
    """
    for key in settings:
        method, _, setting = key.rpartition(".")
        if setting in ("lr", "momentum", "granularity"):
            raise ConfigurationError(f"`set` cannot set {setting!r}; use {_OWN_OPTION[setting]}")
        if method and method not in names:
            raise ConfigurationError(f"`set` {key!r} names no method of this run: {', '.join(names)}")
        concerned = (method,) if method else names
        if any(setting in (*settable(name), *_compressed(name)) for name in concerned):
            continue
        valid = "; ".join(f"{name} has {', '.join(settable(name)) or 'none'}" for name in concerned)
        raise ConfigurationError(
            "`compression` needs a method that pushes from a copy of the weights, such as stale_synchronous"
            f" or downpour; got {', '.join(concerned)}"
            if setting == "compression"
            else f"`set` names {setting!r}, which is no setting; {valid}"
        )


def schedule(name: str, lr: float, has_end: bool) -> float | Rate:
    """The learning rate as a number, or as a schedule that ends when the planned samples do.

    Raises:
        ConfigurationError: an unknown name, or a budget of unknown length.
    """
    choose("schedule", name, SCHEDULES, "a recipe")
    if name == "constant":
        return lr
    if not has_end and name != "annealed":
        raise ConfigurationError(
            f"`schedule` {name!r} needs a known end; give `epochs` or `max_samples`, or use 'constant'"
        )
    maker: Callable[[float], schedules.Schedule] = getattr(schedules, name)
    return maker(lr)


def _diloco(rate: Rate, given: dict[str, Any]) -> Method:
    """DiLoCo, whose learning rate is that of its workers' optimizer, with less outer momentum.

    The papers' outer momentum of 0.9 is for hundreds of exchanges; a run of these recipes has some dozens, in
    which it overshoots: MLP, 8 workers, 30,000 images, accuracy 0.63 with 0.9 and 0.81 with 0.5.
    """
    asynchronous = given.get("asynchronous", True)
    outer = None if asynchronous else sgd(0.7, momentum=OUTER_MOMENTUM, nesterov=True)
    method = diloco(inner=adamw(rate), outer=outer, **given)
    if not asynchronous:
        return method

    def gentle(workers: int) -> Rule:
        return delayed_nesterov(0.7, momentum=OUTER_MOMENTUM, buffer=given.get("buffer", workers))

    return replace(method, rule=gentle, settings={**method.settings, "outer": gentle(2).describe})


def _explicit(name: str, chosen: Optimization) -> dict[str, Any]:
    """Momentum and granularity, if they were chosen; refused where the method has no such thing."""
    accepted = inspect.signature(METHODS[name]).parameters
    given: dict[str, Any] = {}
    if chosen.momentum is not None:
        given["momentum"] = chosen.momentum
    if chosen.granularity != "model" or "granularity" in accepted:
        given["granularity"] = chosen.granularity
    for setting, value in given.items():
        if setting not in accepted:
            having = ", ".join(
                one for one in METHODS if setting in inspect.signature(METHODS[one]).parameters
            )
            raise ConfigurationError(
                f"`{setting}` is no setting of {name}, got {value!r}; leave it out, or use {having}"
            )
    return given


def _of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that this method has; a setting for one method goes before one for all."""
    known = {*settable(name), *_compressed(name)}
    for_all = {key: value for key, value in settings.items() if key in known}
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    return for_all | own


def _compressed(name: str) -> tuple[str, ...]:
    return tuple(one for one in inspect.signature(METHODS[name]).parameters if one == "compression")

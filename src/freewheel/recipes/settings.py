"""What a user may choose in a recipe, and how that becomes a method and arguments of ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal, NamedTuple, cast

from torch import nn

from freewheel import methods, schedules
from freewheel.errors import ConfigurationError
from freewheel.methods import Method
from freewheel.schedules import Rate

SCHEDULES = ("annealed", "constant", "cosine", "linear")


class Defaults(NamedTuple):
    """What a model trains with where the user chooses nothing."""

    batch_size: int
    lr: float
    epochs: int


@dataclass(frozen=True)
class Optimization:
    """How the weights are changed; None is the default of the model or of the method.

    Attributes:
        lr: learning rate, at the beginning where there is a schedule.
        momentum: in [0, 1).
        schedule: "constant", or "cosine" or "linear" down to zero at the end of the budget; "annealed" is
            "cosine" where the budget plans the samples, else "constant".
        granularity: "model" or "layer".
        batch_size: examples in one worker's minibatch; sequences for text.
    """

    lr: float | None = None
    momentum: float | None = None
    schedule: str = "annealed"
    granularity: str = "model"
    batch_size: int | None = None


@dataclass(frozen=True)
class Budget:
    """When a run ends and how often it is measured; see :func:`freewheel.fit`."""

    epochs: int | None = None
    max_samples: int | None = None
    max_seconds: float | None = None
    target: tuple[str, float] | None = None
    evaluate_every: int | None = None


@dataclass(frozen=True)
class Hardware:
    """Where a run happens; see :func:`freewheel.fit`."""

    engine: str = "threads"
    workers: int | Literal["auto"] = "auto"
    intra_op_threads: int | None = None
    precision: str = "float32"


@dataclass(frozen=True)
class Settings:
    """Everything that a user may choose in a recipe.

    Attributes:
        data: name of the data set; None is the recipe's first.
        model: name of the model; None is the recipe's first.
        optimization: how the weights are changed.
        budget: when a run ends.
        hardware: where it happens.
    """

    data: str | None = None
    model: str | None = None
    optimization: Optimization = field(default_factory=Optimization)
    budget: Budget = field(default_factory=Budget)
    hardware: Hardware = field(default_factory=Hardware)


@dataclass(frozen=True)
class Recipe:
    """A model, its data, and the arguments of ``fit``, without the method.

    Attributes:
        build: makes the model, from PyTorch's generator.
        data: to train on.
        arguments: further arguments of ``fit``.
        method: name -> the method with the recipe's learning rate.
        title: what is trained on what, for people.
        note: what a user should know about the data, or empty.
        show: prints something from the trained module, such as a text; None where there is nothing to show.
    """

    build: Callable[[], nn.Module]
    data: Any
    arguments: dict[str, Any]
    method: Callable[[str], Method]
    title: str
    note: str = ""
    show: Callable[[nn.Module], str] | None = None


def choose(option: str, value: str | None, valid: Sequence[str], recipe: str) -> str:
    """The value, or the first valid one for None.

    Raises:
        ConfigurationError: it is not valid; the message lists what is.
    """
    if value is None:
        return valid[0]
    if value not in valid:
        raise ConfigurationError(f"`{option}` for {recipe} must be one of {', '.join(valid)}, got {value!r}")
    return value


def check_target(target: tuple[str, float] | None, metrics: Sequence[str], recipe: str) -> None:
    """Refuses a target on a metric that the recipe does not measure, before anything is trained.

    Raises:
        ConfigurationError: the metric is not among ``metrics``.
    """
    if target is not None:
        choose("target", target[0], metrics, recipe)


def common_arguments(settings: Settings, defaults: Defaults) -> dict[str, Any]:
    """The arguments of ``fit`` that are the same in every recipe."""
    budget, hardware = settings.budget, settings.hardware
    unlimited = budget.epochs is budget.max_samples is budget.max_seconds is None
    return {
        "batch_size": settings.optimization.batch_size or defaults.batch_size,
        "epochs": defaults.epochs if unlimited else budget.epochs,
        "max_samples": budget.max_samples,
        "max_seconds": budget.max_seconds,
        "target": budget.target,
        "evaluate_every": budget.evaluate_every,
        "engine": hardware.engine,
        "workers": hardware.workers,
        "intra_op_threads": hardware.intra_op_threads,
        "precision": hardware.precision,
    }


def method_maker(chosen: Optimization, lr: float, arguments: Mapping[str, Any]) -> Callable[[str], Method]:
    """Name -> the method with these settings.

    Args:
        chosen: by the user.
        lr: the model's default learning rate.
        arguments: of ``fit``; they say whether the run has an end that a schedule can go by.

    Raises:
        ConfigurationError: a schedule without a known end, or an unknown schedule; later, a setting that the
            method does not have.
    """
    has_end = arguments["epochs"] is not None or arguments["max_samples"] is not None
    rate = schedule(chosen.schedule, lr if chosen.lr is None else chosen.lr, has_end)
    wanted = {"lr": rate, "momentum": chosen.momentum, "granularity": chosen.granularity}
    by_default = {
        "lr": chosen.lr is None,
        "momentum": chosen.momentum is None,
        "granularity": chosen.granularity == "model",
    }

    def make(name: str) -> Method:
        choose("method", name, tuple(methods.METHODS), "a recipe")
        maker = cast(Mapping[str, Callable[..., Method]], methods.METHODS)[name]
        taken = signature(maker).parameters
        for setting in wanted:
            if setting not in taken and not by_default[setting]:
                raise ConfigurationError(
                    f"`{setting}` is no setting of {name}, got {wanted[setting]!r}; leave it out"
                )
        given = {key: value for key, value in wanted.items() if key in taken and value is not None}
        return maker(**given)

    return make


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

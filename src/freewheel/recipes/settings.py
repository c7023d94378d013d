"""What a user may choose in a recipe, and how that becomes a method and arguments of ``fit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import nn

from freewheel.errors import ConfigurationError
from freewheel.methods import Method

SCHEDULES = ("annealed", "constant", "cosine", "linear")


class Defaults(NamedTuple):
    """What a model trains with where the user chooses nothing.

    Attributes:
        batch_size: examples in one worker's minibatch.
        lr: learning rate.
        epochs: passes over the data.
        methods: method -> settings in which it departs from the method's own defaults.
    """

    batch_size: int
    lr: float
    epochs: int
    methods: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


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
        settings: of methods: by "bound" for every method that has it, by "stale_synchronous.bound" for one.
    """

    lr: float | None = None
    momentum: float | None = None
    schedule: str = "annealed"
    granularity: str = "model"
    batch_size: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


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

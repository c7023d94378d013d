"""What the rules share: checks of arguments, descriptions, and the entries that have a gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.rules.base import Rule, RuleContext
from freewheel.schedules import Constant, number
from freewheel.update import Update


def described(factory: Callable[..., Rule], **settings: object) -> str:
    """The call that makes the rule, without the settings that have their default.

    Example:
        >>> from freewheel.rules import clip
        >>> described(clip, max_norm=1.0)
        'clip(max_norm=1.0)'
    """
    parameters = inspect.signature(factory).parameters
    shown = {name: _shown(value) for name, value in settings.items() if value != parameters[name].default}
    return f"{factory.__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


def whole(name: str, value: object, low: int, remedy: str) -> int:
    """A whole number of at least `low`, or a ConfigurationError that names the argument.

    Raises:
        ConfigurationError: it is none; the message names the argument, the value and the remedy.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise ConfigurationError(f"`{name}` must be a whole number >= {low}, got {value!r}; {remedy}")


def below_one(name: str, value: object, remedy: str = "0.9 is common") -> float:
    """A number in [0, 1) as a float, or a ConfigurationError that names the argument."""
    return number(name, value, 0.0, 1.0, remedy)


def present(update: Update) -> list[Tensor]:
    """The gradients of the entries that have one."""
    return [gradient for gradient in update.gradients if gradient is not None]


def used(update: Update, context: RuleContext, *columns: list[Tensor]) -> list[list[Tensor]]:
    """Live weights, gradients and these columns, for the entries that have a gradient.

    Raises:
        ConfigurationError: the context has no weights.
    """
    if context.weights is None:
        raise ConfigurationError(
            "`context.weights` is None, but the rule reads or writes them; set it to the live weights"
        )
    for gradient in update.gradients:  # `None in gradients` would call the == of every tensor: 100 us
        if gradient is None:
            positions = [i for i, gradient in enumerate(update.gradients) if gradient is not None]
            rest = [[column[i] for i in positions] for column in (context.weights, *columns)]
            return [rest[0], present(update), *rest[1:]]
    return [context.weights, present(update), *columns]


def _shown(value: object) -> str:
    return repr(value.lr if isinstance(value, Constant) else value)

"""Named methods: how workers and the server relate.

A method is data: a gate (who may start a step), whether updates are gathered into rounds, the granularity of
an update, the rule that the server applies, and the worker's half (an exchange). Each function composes them.

    base.py    Method
    plain.py   one gradient, one push: synchronous, hogwild, stale_synchronous, delay_compensated
    local.py   several steps between exchanges: downpour, elastic_averaging, local_sgd, parallel_sgd, diloco
"""

from collections.abc import Callable

from freewheel.errors import ConfigurationError
from freewheel.methods.base import DEFAULT_LR, DEFAULT_MOMENTUM, Method
from freewheel.methods.local import diloco, downpour, elastic_averaging, local_sgd, parallel_sgd
from freewheel.methods.plain import (
    asynchronous_momentum,
    delay_compensated,
    hogwild,
    stale_synchronous,
    synchronous,
)

METHODS: dict[str, Callable[[], Method]] = {
    "hogwild": hogwild,
    "synchronous": synchronous,
    "stale_synchronous": stale_synchronous,
    "delay_compensated": delay_compensated,
    "downpour": downpour,
    "elastic_averaging": elastic_averaging,
    "local_sgd": local_sgd,
    "parallel_sgd": parallel_sgd,
    "diloco": diloco,
}


def by_name(method: "str | Method | None") -> Method:
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


__all__ = [
    "DEFAULT_LR",
    "DEFAULT_MOMENTUM",
    "METHODS",
    "Method",
    "asynchronous_momentum",
    "by_name",
    "delay_compensated",
    "diloco",
    "downpour",
    "elastic_averaging",
    "hogwild",
    "local_sgd",
    "parallel_sgd",
    "stale_synchronous",
    "synchronous",
]

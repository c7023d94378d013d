"""Engines: where and when the steps of a job run."""

from collections.abc import Callable

from freewheel.engines.auto import Auto
from freewheel.engines.base import Engine
from freewheel.engines.processes import Processes
from freewheel.engines.serial import Serial
from freewheel.engines.simulated import Simulated
from freewheel.engines.threads import Threads
from freewheel.errors import ConfigurationError

ENGINES: dict[str, Callable[[], Engine]] = {
    "serial": Serial,
    "threads": Threads,
    "processes": Processes,
    "simulated": Simulated,
    "auto": Auto,
}


def by_name(engine: "str | Engine") -> Engine:
    """The engine itself, or the one of this name.

    Raises:
        ConfigurationError: an unknown name; the message lists the known ones.
    """
    if isinstance(engine, str):
        if engine in ENGINES:
            return ENGINES[engine]()
        raise ConfigurationError(f"`engine` must be one of {', '.join(ENGINES)}, got {engine!r}")
    if not hasattr(engine, "run"):
        raise ConfigurationError(
            f"`engine` must be one of {', '.join(ENGINES)} or have run(job), got {engine!r}"
        )
    return engine


__all__ = ["ENGINES", "Auto", "Engine", "Processes", "Serial", "Simulated", "Threads", "by_name"]

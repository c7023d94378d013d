"""The engine: what a user gives as ``engine=``. See ``crew.py`` for how a run goes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from freewheel.engines.base import seeded
from freewheel.errors import ConfigurationError
from freewheel.events import Monitor
from freewheel.job import Job, Result


@final
@dataclass(frozen=True)
class Processes:
    """Runs every worker in a process of this machine, over shared memory.

    Weights, the state of the rule, and data that are tensors or large arrays exist once. Everything else, the
    module, the loss, a data set, is pickled once, by value where a process cannot import it, so lambdas,
    notebooks and unguarded scripts work; what a step or a data set writes to other objects stays in its
    worker. Where nobody waits and the rule may race, workers apply their updates themselves, without a lock;
    else the main process does.

    Each worker seeds the generators of PyTorch, Python and NumPy from the seed of the run and its number. A
    worker that dies, raises or hangs is replaced, unless ``on_error="stop"``; see docs/failures.md.

    Attributes:
        pin: bind every worker to cores of its own, as many as it has intra-op threads; in turn, where there
            are fewer cores.

    Raises:
        ConfigurationError: this system cannot fork processes, or cannot pin them.

    Example:
        >>> Processes(pin=False).name
        'processes'
    """

    pin: bool = False
    name: str = "processes"

    def __post_init__(self) -> None:
        if "forkserver" not in multiprocessing.get_all_start_methods():
            raise ConfigurationError(
                "`engine`='processes' needs a system that can fork processes; use engine='threads'"
            )
        if not isinstance(self.pin, bool):
            raise ConfigurationError(f"`pin` must be True or False, got {self.pin!r}")
        if self.pin and not hasattr(os, "sched_setaffinity"):
            raise ConfigurationError("`pin`=True: this system cannot bind processes to cores; use pin=False")

    def check(self, job: Job) -> None:
        """Refuses what processes cannot do.

        Raises:
            ConfigurationError: a model on a GPU, or something that cannot be pickled; the message names it.
        """
        device = next(job.module.parameters()).device
        if device.type != "cpu":
            raise ConfigurationError(
                "`engine`='processes' shares weights in the memory of the processor, but `model` is on"
                f" {device}; use engine='threads', or model.cpu()"
            )
        from freewheel.engines.processes.batches import fetched_by_workers
        from freewheel.engines.processes.parcel import check_sendable

        source = job.source if fetched_by_workers(job.source) else None
        check_sendable({"module": job.module, "task": job.task, "equipment": job.method, "source": source})

    def run(self, job: Job, monitors: Sequence[Monitor] = ()) -> Result:
        """Trains; Ctrl-C lets the workers finish their step and returns what was trained."""
        from freewheel.engines.processes import nursery
        from freewheel.engines.processes.crews import trained

        nursery.prepare()
        with seeded(job):
            return trained(job, monitors, self.name, self.pin)

"""The simulated engine: the true gradients of the true model, on a virtual clock.

Only time is modelled. What a worker computes depends on nothing but the weights that it has read, so a step
is computed at the moment at which its pull is served, and its result kept until the time at which the worker
would have it. With equal constant times and no latency, the order is the serial engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from freewheel.engines.base import intra_op, seeded
from freewheel.engines.clock import VirtualClock
from freewheel.engines.session import Session
from freewheel.engines.virtual import Simulation, World
from freewheel.errors import ConfigurationError
from freewheel.events import Monitor
from freewheel.job import Job, Result
from freewheel.simulation import (
    Agenda,
    Fault,
    FaultPlan,
    Network,
    ServerCost,
    StepTimes,
    as_times,
    check_workers,
)
from freewheel.simulation.checks import share
from freewheel.tasks import Supervised


@final
@dataclass(frozen=True)
class Simulated:
    """Trains on one core as if on many machines, and says what it would have taken.

    Attributes:
        times: how long a step takes: seconds, or a model of :mod:`freewheel.simulation`.
        network: how fast messages travel.
        server: what a push and a pull cost a shard.
        faults: what goes wrong.
        turnaround: the share of a step that lies between the worker's last push and its pull, 0 to 1, such as
            a thread spends that applies its update itself and fetches a batch. What others push meanwhile
            makes nobody's gradient stale. Of workers that read the live weights it is the mean of shares that
            are drawn for each step, so that it does not matter in which phase they are to each other.

    Raises:
        ConfigurationError: something that is no model, or a turnaround that is no share.

    Example:
        >>> import torch, freewheel
        >>> from freewheel.simulation import Network, constant, slow
        >>> x = torch.randn(256, 8); y = (x.sum(1) > 0).long()
        >>> engine = freewheel.Simulated(slow(constant(0.01), {0: 4.0}), Network(latency_s=0.001))
        >>> result = freewheel.fit(torch.nn.Linear(8, 2), (x, y), loss=torch.nn.CrossEntropyLoss(),
        ...                        method=freewheel.downpour(0.1), engine=engine, workers=8)
        >>> result.workers[0].steps < result.workers[1].steps
        True
    """

    times: StepTimes | float = 0.01
    network: Network = field(default_factory=Network)
    server: ServerCost = field(default_factory=ServerCost)
    faults: Iterable[Fault] = ()
    turnaround: float = 0.0
    name: str = "simulated"

    def __post_init__(self) -> None:
        as_times(self.times)
        for name, kind in (("network", Network), ("server", ServerCost)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigurationError(
                    f"`{name}` must be a freewheel.simulation.{kind.__name__}, got {getattr(self, name)!r}"
                )
        object.__setattr__(self, "faults", FaultPlan(self.faults).faults)
        share("turnaround", self.turnaround)

    def check(self, job: Job) -> None:
        """Refuses times and faults of workers that there are not, live reads over a network, and streams."""
        workers = job.setup.workers
        check_workers("times", as_times(self.times).named, workers)
        check_workers("faults", FaultPlan(self.faults).named, workers)
        if job.source.batches is None:
            raise ConfigurationError(
                "the simulated engine needs `data` of known length; give tensors, a Dataset, or a DataLoader"
                " over one"
            )
        live = job.method.exchange is None and not job.method.rounds
        if live and not self.network.instant:
            raise ConfigurationError(
                f"{job.method.name} reads the live weights, which workers can only do within one machine, but"
                f" `network` is {self.network.describe}; use stale_synchronous() or downpour(), or no network"
            )

    def run(self, job: Job, monitors: Sequence[Monitor] = ()) -> Result:
        """Trains; Ctrl-C ends the run and returns what was trained."""
        self.check(job)
        if isinstance(job.task, Supervised):  # on a virtual clock the layers of a step arrive together
            job = replace(job, task=replace(job.task, granularity="model"))
        job = replace(job, config={**job.config, **self._described()})
        faults = FaultPlan(self.faults, job.setup.seed)
        world = World(as_times(self.times), self.network, self.server, faults, self.turnaround)
        agenda = Agenda()
        clock = VirtualClock(agenda)
        session = Session(job, monitors, self.name, clock)
        with intra_op(job.setup.intra_op_threads), seeded(job):
            Simulation(session, agenda, clock, world).run()
        return session.result()

    def _described(self) -> dict[str, Any]:
        return {
            "times": as_times(self.times).describe,
            "network": self.network.describe,
            "server": self.server.describe,
            "faults": FaultPlan(self.faults).describe,
            **({"turnaround": self.turnaround} if self.turnaround else {}),
        }

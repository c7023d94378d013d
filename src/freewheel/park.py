"""The machines that advice is for, and the methods that are tried on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from freewheel import methods
from freewheel.errors import ConfigurationError
from freewheel.machine import cores
from freewheel.methods import Method
from freewheel.schedules import annealed
from freewheel.simulation import Network, check_workers


@dataclass(frozen=True)
class Park:
    """The machines that are planned.

    Attributes:
        workers: how many.
        network: between them; None: none, or one that costs nothing.
        slow: worker -> how many times slower it is.
    """

    workers: int
    network: Network | None = None
    slow: Mapping[int, float] | None = None

    @property
    def apart(self) -> bool:
        """Whether every worker has a machine to itself."""
        return (self.network is not None and not self.network.instant) or self.workers > cores()

    @property
    def describe(self) -> str:
        """In words."""
        kind = "machines of their own" if self.apart else "threads of this machine"
        wires = f", {self.network.describe}" if self.apart and self.network is not None else ""
        late = f", {len(self.slow)} of them slow" if self.slow else ""
        return f"{self.workers} workers, {kind}{wires}{late}"


def backup_of(park: Park) -> int:
    """Workers that a round need not wait for: one in eight."""
    return max(1, park.workers // 8)


def usual(park: Park, lr: float) -> dict[str, Method]:
    """The methods that are tried, with a learning rate of SGD with momentum 0.9.

    Args:
        park: the machines.
        lr: learning rate, annealed.
    """
    rate = annealed(lr)
    made: dict[str, Method] = {"synchronous": methods.synchronous(rate)}
    if park.workers >= 4:
        spare = backup_of(park)
        made[f"synchronous, {spare} backup"] = methods.synchronous(rate, backup_workers=spare)
    if not park.apart:
        made["hogwild"] = methods.hogwild(rate)
    made["stale_synchronous"] = methods.stale_synchronous(3, rate)
    made["downpour"] = methods.downpour(annealed(lr / 2))
    made["local_sgd"] = methods.local_sgd(rate, 10, momentum=0.9)
    return made


def park_of(workers: int | None, network: Network | None, factors: Mapping[int, float] | None) -> Park:
    """The park that these arguments describe.

    Raises:
        ConfigurationError: no number of workers, no network, or a slow worker that is none.
    """
    number = cores() if workers is None else workers
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigurationError(
            f"`workers` must be a whole number >= 1, got {workers!r}; leave it out for one per core"
        )
    if network is not None and not isinstance(network, Network):
        raise ConfigurationError(
            f"`network` must be a freewheel.simulation.Network, got {network!r}; Network.lan(), say"
        )
    check_workers("slow", factors or (), number)
    return Park(number, network, factors)


def contestants_of(given: Mapping[str, Method] | None, park: Park, lr: float) -> dict[str, Method]:
    """The user's methods by label, or the usual ones.

    Raises:
        ConfigurationError: something else than methods.
    """
    if given is None:
        return usual(park, lr)
    if not given or not all(isinstance(one, Method) for one in given.values()):
        raise ConfigurationError(
            f"`contestants` must be a dictionary label -> method, such as {{'mine': freewheel.downpour()}},"
            f" got {given!r}"
        )
    return dict(given)

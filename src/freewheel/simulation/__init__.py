"""What a simulated run takes: models of time, of a network, and of what goes wrong; no engine, no training.

Everything is decided by ``(seed, worker, step)``: the same seed gives the same run, whoever draws first.

    queue.py       Agenda: what happens when, on a virtual clock
    times.py       how long a step takes: constant, lognormal, measured
    fleet.py       unequal workers: per_worker, slow machines, machines that pause
    trace.py       from_trace: step times out of a recorded run
    network.py     Network, Links: how long a message takes
    station.py     Station, ServerCost: how long a server takes, and who waits for it
    faults.py      die, hang, corrupt, duplicate, reorder, lose
    fault_plan.py  FaultPlan: when they happen
    noise.py       replace_by_noise: what a corrupted push holds
    units.py       parse_seconds("5ms"), parse_rate("1Gbit/s")
    draws.py       random numbers by (seed, purpose, worker, position)
    checks.py      checks of arguments

Example:
    Three workers push to one server, which takes 0.3 s for each; one of them is three times slower.

    >>> from freewheel.simulation import Agenda, Station, constant, slow
    >>> agenda, server, pushed = Agenda(), Station(), [0, 0, 0]
    >>> times = slow(constant(1.0), {2: 3.0})
    >>> draw = [times.sampler(seed=0, worker=worker) for worker in range(3)]
    >>> def compute(worker):
    ...     agenda.at(agenda.now + draw[worker](agenda.now), lambda: push(worker))
    >>> def push(worker):
    ...     pushed[worker] += 1
    ...     agenda.at(server.serve(agenda.now, 0.3), lambda: compute(worker))
    >>> for worker in range(3):
    ...     compute(worker)
    >>> agenda.run(until=100.0)
    >>> pushed, round(server.utilisation(100.0), 2)
    ([76, 75, 30], 0.54)
"""

from freewheel.simulation.checks import check_workers
from freewheel.simulation.fault_plan import Fate, FaultPlan
from freewheel.simulation.faults import (
    Corrupt,
    Die,
    Duplicate,
    Fault,
    Hang,
    Lose,
    Reorder,
    corrupt,
    die,
    duplicate,
    hang,
    lose,
    reorder,
)
from freewheel.simulation.fleet import pauses, per_worker, slow
from freewheel.simulation.network import Links, Network
from freewheel.simulation.noise import replace_by_noise
from freewheel.simulation.queue import Agenda, Convoy
from freewheel.simulation.station import ServerCost, Station
from freewheel.simulation.times import (
    Sampler,
    StepTimes,
    as_times,
    constant,
    lognormal,
    measured,
)
from freewheel.simulation.trace import from_trace
from freewheel.simulation.units import parse_rate, parse_seconds

__all__ = [
    "Agenda",
    "Convoy",
    "Corrupt",
    "Die",
    "Duplicate",
    "Fate",
    "Fault",
    "FaultPlan",
    "Hang",
    "Links",
    "Lose",
    "Network",
    "Reorder",
    "Sampler",
    "ServerCost",
    "Station",
    "StepTimes",
    "as_times",
    "check_workers",
    "constant",
    "corrupt",
    "die",
    "duplicate",
    "from_trace",
    "hang",
    "lognormal",
    "lose",
    "measured",
    "parse_rate",
    "parse_seconds",
    "pauses",
    "per_worker",
    "reorder",
    "replace_by_noise",
    "slow",
]

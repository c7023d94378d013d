"""Asynchronous training of neural networks: workers update the weights as soon as they are ready.

- ``params.py`` the flat vector and its named views; ``update.py`` what a worker hands the server
- ``rules/`` what happens to an update; ``schedules.py`` learning rates; ``gates.py`` who may start a step
- ``server.py`` the only one that changes shared weights; ``shards.py`` spans of them
- ``gathering.py`` what it does in synchronous training; ``rounds.py`` one round and its mean
- ``book.py`` what the server knows of each worker, and the ledger
- ``conform.py`` gradients laid out as the weights, for rules that work in place
- ``exchanges/`` the worker's half of a method: when to pull, what to push; ``link.py`` its end of the line
- ``sources/`` which batch comes next; ``tasks/`` what one worker computes in one step
- ``methods/`` named combinations of the above; ``job.py`` what an engine runs, and what comes of it
- ``engines/`` where and when steps run; ``events.py`` everything that happens, as data
- ``train.py`` fit(), the front door; ``compare.py`` several methods with equal budgets
- ``recording/`` the order of pulls and pushes; ``replay.py`` a recorded run once more
- ``checkpoints/`` the whole state of a run on disk, and back
- ``audit.py`` does the record of a run add up? ``auditing/`` what it looks at
- ``calibrate.py`` measures this machine for a simulation; ``advise.py`` says which method to use
- ``elastic.py`` more or fewer workers while a run is under way
- ``dropin/`` training scripts of others: ``freewheel run`` and ``join()``
- ``monitors/`` who listens; ``report/`` events -> HTML and plots; ``commands/`` the command line
- ``data/`` loaders and embedded sets; ``recipes/`` example models and runs
- ``testing/`` faults on purpose; ``injection.py`` where they get hold of a run
- ``machine.py`` cores and allocator; ``randomness.py`` borrowed generators; ``errors.py``, ``metrics.py``
"""

from typing import TYPE_CHECKING, Any

from freewheel import data, monitors, rules, schedules, simulation
from freewheel.advice import Advice
from freewheel.advise import advise
from freewheel.audit import Audit, audit
from freewheel.calibrate import calibrate
from freewheel.calibration import Calibration
from freewheel.compare import compare
from freewheel.comparison import Comparison
from freewheel.elastic import set_workers
from freewheel.engines import Processes, Serial, Simulated, Threads
from freewheel.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    FreewheelError,
    TrainingError,
    WorkerError,
)
from freewheel.gates import barrier, bounded, free, warm_start
from freewheel.job import Job, Result, Stop
from freewheel.methods import (
    Method,
    delay_compensated,
    diloco,
    downpour,
    elastic_averaging,
    hogwild,
    local_sgd,
    parallel_sgd,
    stale_synchronous,
    synchronous,
)
from freewheel.replay import Replay, replay
from freewheel.train import fit

if TYPE_CHECKING:
    from freewheel.dropin.worker import join

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What only scripts under ``freewheel run`` need is imported when it is used."""
    if name != "join":
        raise AttributeError(f"module 'freewheel' has no attribute {name!r}")
    from freewheel.dropin.worker import join

    return join


__all__ = [
    "Advice",
    "Audit",
    "Calibration",
    "CheckpointError",
    "Comparison",
    "ConfigurationError",
    "DataError",
    "FreewheelError",
    "Job",
    "Method",
    "Processes",
    "Replay",
    "Result",
    "Serial",
    "Simulated",
    "Stop",
    "Threads",
    "TrainingError",
    "WorkerError",
    "advise",
    "audit",
    "barrier",
    "bounded",
    "calibrate",
    "compare",
    "data",
    "delay_compensated",
    "diloco",
    "downpour",
    "elastic_averaging",
    "fit",
    "free",
    "hogwild",
    "join",
    "local_sgd",
    "monitors",
    "parallel_sgd",
    "replay",
    "rules",
    "schedules",
    "set_workers",
    "simulation",
    "stale_synchronous",
    "synchronous",
    "warm_start",
]

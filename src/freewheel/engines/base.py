"""What an engine is, and small things that engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import nn

from freewheel.evaluation import numbers
from freewheel.events import Event, Monitor
from freewheel.job import Job, Result
from freewheel.randomness import generators_kept


class Engine(Protocol):
    """Runs a job."""

    @property
    def name(self) -> str:
        """For the record."""
        ...

    def check(self, job: Job) -> None:
        """Refuses a job that it cannot run; called before anything is written.

        Raises:
            ConfigurationError: names what does not go together, and the remedy.
        """
        ...

    def run(self, job: Job, monitors: Sequence[Monitor] = ()) -> Result:
        """Trains, and returns what came of it; the job's module holds the trained weights."""
        ...


def measured(module: nn.Module, measure: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    """Metrics as plain numbers, of the module in evaluation mode."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return numbers(measure(module))
    finally:
        for submodule, training in modes:
            submodule.training = training


def quiet(monitor: Monitor) -> Monitor:
    """The same monitor with its errors suppressed."""

    def listen(event: Event) -> None:
        with suppress(Exception):
            monitor(event)

    return listen


@contextmanager
def seeded(job: Job) -> Iterator[None]:
    """PyTorch's generators are seeded for the run, and are as before after it."""
    with generators_kept(job.module):
        torch.manual_seed(job.setup.seed)
        yield


@contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """Operations use so many threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

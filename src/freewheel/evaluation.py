"""Measuring a model: metrics over a data set, by the task itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from freewheel.errors import ConfigurationError, DataError
from freewheel.randomness import generators_kept
from freewheel.sources import Lease, Source
from freewheel.tasks import Task


def over_source(task: Task[Any], source: Source) -> Callable[[nn.Module], dict[str, float]]:
    """Means over one epoch of a source, in its order; recurrent state goes from segment to segment.

    Args:
        task: measures a batch.
        source: made for evaluation only; it is read from its beginning each time.
    """

    def measure(module: nn.Module) -> dict[str, float]:
        return _mean(task, module, _epoch(source))

    return measure


def check_metrics(module: nn.Module, task: Task[Any], source: Source) -> set[str]:
    """Measures one batch on a copy, and returns the names of the metrics.

    Raises:
        DataError: no examples.
        ConfigurationError: the model, the loss or a metric does not accept the data.
    """
    batch = source.first()
    twin = copy.deepcopy(module).eval()
    try:
        with torch.no_grad(), generators_kept(module):
            return set(task.measure(twin, batch, None)[0])
    except Exception as error:
        raise ConfigurationError(
            f"`evaluate` failed on its first batch: {type(error).__name__}: {error}. The model, the loss"
            " and the metrics must accept what it gives"
        ) from error


def check_function(module: nn.Module, measure: Callable[[nn.Module], dict[str, float]]) -> set[str]:
    """Measures a copy once with the user's function, and returns the names of the metrics.

    Raises:
        ConfigurationError: the function fails, or does not give a dictionary.
    """
    with torch.no_grad(), generators_kept(module):
        try:
            metrics = measure(copy.deepcopy(module).eval())
        except Exception as error:
            raise ConfigurationError(f"`evaluate` failed: {type(error).__name__}: {error}") from error
    return set(numbers(metrics))


def numbers(metrics: Any) -> dict[str, float]:
    """What a user's evaluation returned, as plain numbers; tensors and NumPy scalars are fine.

    Raises:
        ConfigurationError: it is no dictionary of numbers.
    """
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"`evaluate` must return {{name: number}}, such as {{'accuracy': 0.9}}, got {metrics!r}"
        ) from error


def _epoch(source: Source) -> Iterable[Lease]:
    source.open(0, source.batches)
    while (lease := source.take()) is not None:
        yield lease
        source.acknowledge(lease)


def _mean(task: Task[Any], module: nn.Module, leases: Iterable[Lease]) -> dict[str, float]:
    totals: dict[str, float] = {}
    count = 0
    for lease in leases:
        carry = lease.carry.value if lease.carry is not None else None
        sums, samples, carried = task.measure(module, lease.batch, carry)
        if lease.carry is not None:
            lease.carry.value = carried
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + value
        count += samples
    if not count:
        raise DataError("`evaluate` gave no examples")
    metrics = {name: total / count for name, total in totals.items()}
    return {name: value if math.isfinite(value) else math.nan for name, value in metrics.items()}

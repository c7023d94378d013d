"""What a recording is of: everything that a replay must have in common with the run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from freewheel.errors import ConfigurationError
from freewheel.job import Job
from freewheel.params import running_statistics
from freewheel.sources import Indexed, Sequences
from freewheel.tasks import Supervised


def identity(job: Job) -> dict[str, Any]:
    """What of a job decides the weights, as JSON values under the names of the arguments of ``fit``."""
    method, setup, source, task = job.method, job.setup, job.source, job.task
    rule = method.rule_for(setup.workers)
    found = {
        "method": {
            "name": method.name,
            "gate": method.gate.describe,
            "rule": rule.describe,
            "compression": method.compression.describe if method.compression is not None else None,
            "in_flight": method.in_flight,
            "backup": method.backup,
            "settings": method.settings,
        },
        "workers": setup.workers,
        "shards": setup.shards,
        "seed": setup.seed,
        "batch_size": source.batch_size,
        "data": {"samples": source.samples, "batches": source.batches, "order": _order(source)},
        "model": _layout(job),
        "loss": _name(task.loss or task.step_function) if isinstance(task, Supervised) else _name(task),
    }
    result: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return result


def setup(job: Job) -> dict[str, Any]:
    """What a replay takes over from the run without being told, as JSON values."""
    task = job.task
    return {
        **asdict(job.setup),
        "stop": {name: getattr(job.stop, name) for name in ("epochs", "max_samples", "max_seconds")},
        "autocast": isinstance(task, Supervised) and task.autocast,
    }


def check_same(recorded: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuses to replay with something else than was recorded.

    Raises:
        ConfigurationError: names every argument that differs, with both values.
    """
    lines = [
        line for name, value in recorded.items() for line in _differences(f"`{name}`", value, given.get(name))
    ]
    if lines:
        raise ConfigurationError(
            "a replay needs what the run was recorded with: " + "; ".join(lines) + ". Give replay() the same"
            " arguments as fit()"
        )


def _differences(name: str, recorded: Any, given: Any) -> list[str]:
    if recorded == given:
        return []
    if isinstance(recorded, dict) and isinstance(given, dict):
        return [
            line
            for key in {**recorded, **given}
            for line in _differences(f"{name} {key}", recorded.get(key), given.get(key))
        ]
    return [f"{name} was {recorded!r}, got {given!r}"]


def _layout(job: Job) -> dict[str, Any]:
    """Weights by name, with their shapes; those that are frozen; running statistics."""
    named = list(job.module.named_parameters())
    shapes: dict[str, Any] = {name: list(weight.shape) for name, weight in named}
    shapes |= {name: list(buffer.shape) for name, buffer in running_statistics(job.module)}
    frozen = [name for name, weight in named if not weight.requires_grad]
    return {**shapes, "frozen": frozen}


def _order(source: Any) -> Any:
    """How the data are shuffled."""
    return source.order if isinstance(source, Indexed | Sequences) else None


def _name(function: Any) -> str:
    """Of a loss or a task: what can be told of it without running it."""
    return getattr(function, "__qualname__", None) or type(function).__qualname__

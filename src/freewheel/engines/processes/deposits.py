"""What a worker process holds for itself between two steps, for a checkpoint, and how it gets it back."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from freewheel.checkpoints.tree import Tree
from freewheel.link import Link
from freewheel.rules import RuleContext
from freewheel.tasks import WorkerContext


def deposit(
    context: WorkerContext, link: Link | None, buffers: dict[str, Tensor], rules: RuleContext, hopeless: int
) -> Tree:
    """Everything that decides how the worker goes on.

    Args:
        context: the worker's.
        link: its end of the line; None where it has none.
        buffers: of its replica that nobody shares.
        rules: what rules draw from, where the worker applies its updates itself.
        hopeless: steps in a row whose loss was not finite.
    """
    return {
        "context": context.state(),
        "link": None if link is None else link.state(),
        "buffers": buffers,
        "hopeless": hopeless,
        "generators": {
            "torch": torch.get_rng_state(),
            "python": _plain(random.getstate()),
            "numpy": _numpy_state(),
            "rules": None if rules.generator is None else rules.generator.get_state(),
        },
    }


def take_back(
    tree: Tree, context: WorkerContext, link: Link | None, buffers: dict[str, Tensor], rules: RuleContext
) -> int:
    """Goes on from what was deposited; returns the steps in a row whose loss was not finite."""
    context.restore(tree["context"])
    if link is not None:
        link.restore(tree["link"])
    for name, buffer in buffers.items():
        buffer.copy_(tree["buffers"][name])
    generators = tree["generators"]
    torch.set_rng_state(generators["torch"])
    random.setstate(_tuples(generators["python"]))
    kind, keys, *rest = generators["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if rules.generator is not None:
        rules.generator.set_state(generators["rules"])
    return int(tree["hopeless"])


def private_buffers(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """The buffers of a replica with these names, as far as it has them."""
    own = dict(module.named_buffers())
    return {name: own[name] for name in names if name in own}


def _numpy_state() -> list[Any]:
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return [kind, torch.from_numpy(keys.astype(np.int64)), *rest]


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple | list) else value


def _tuples(value: Any) -> Any:
    return tuple([_tuples(one) for one in value]) if isinstance(value, list | tuple) else value

"""PyTorch's process-wide generators: used by modules (dropout), so a run borrows them and gives them back."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn


def generators_kept(module: nn.Module) -> AbstractContextManager[None]:
    """Afterwards the generators that the module draws from, its device's too, are as they were."""
    device = next(module.parameters()).device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

"""Data, models, methods: one definition for every contestant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

import freewheel
from freewheel import rules
from freewheel.data import Images
from freewheel.recipes import models

Pair = tuple[Tensor, Tensor]
DEEP = (784, *[1024] * 12, 10)  # twelve hidden layers of 1024: 12.4 million weights

# Both sides of a speed comparison use these, so that a step is the same work on each. Small enough that
# nobody diverges.
LR = 0.01
MOMENTUM = 0.9


def build(name: str, seed: int) -> nn.Module:
    """A new model; the same seed gives the same weights.

    Args:
        name: "mlp" (784-256-10), "cnn" (the example network), "deep" (an MLP of 12 layers of 1024), or the
            sizes of an MLP such as "784-64-10".
        seed: of the weights.
    """
    torch.manual_seed(seed)
    if name == "cnn":
        return models.cnn()
    if name == "mlp":
        return models.mlp((784, 256, 10))
    return models.mlp(DEEP if name == "deep" else tuple(int(size) for size in name.split("-")))


def available() -> str:
    """The data to use: "fashion-mnist" where the official files can be had, else the embedded part of it."""
    try:
        images("fashion-mnist", "train"), images("fashion-mnist", "test")
    except freewheel.DataError:
        return "fashion-mnist-small"
    return "fashion-mnist"


@cache
def images(name: str, split: Literal["train", "test"]) -> Images:
    """Fashion-MNIST, or the embedded subset of it."""
    small = name == "fashion-mnist-small"
    return freewheel.data.fashion_mnist_small(split) if small else freewheel.data.fashion_mnist(split)


@cache
def tensors(name: str, split: Literal["train", "test"], limit: int | None = None) -> Pair:
    """Normalised images (n, 1, 28, 28) float32 and labels (n,) int64, in memory."""
    inputs, targets = images(name, split).tensors()
    return (inputs, targets) if limit is None else (inputs[:limit].clone(), targets[:limit].clone())


def method(settings: Mapping[str, Any]) -> freewheel.Method:
    """The method that the settings name.

    Settings that are left out take the library's defaults, momentum too.
    """
    makers: dict[str, Callable[..., freewheel.Method]] = {
        "hogwild": freewheel.hogwild,
        "synchronous": freewheel.synchronous,
        "stale_synchronous": freewheel.stale_synchronous,
        "downpour": _downpour,
    }
    options = {
        name: settings[name] for name in ("lr", "momentum", "granularity") if settings.get(name) is not None
    }
    return makers[settings.get("method", "hogwild")](**options)


def _downpour(lr: float, momentum: float | None = None) -> freewheel.Method:
    """Pushes and fetches at every step, and the server does what Hogwild! does; without momentum, Adagrad."""
    server = None if momentum is None else rules.sgd(lr, momentum)
    return freewheel.downpour(lr, push_every=1, pull_every=1, server=server)

"""Image classification: a convolutional network or an MLP on Fashion-MNIST or CIFAR-10."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from freewheel import data
from freewheel.data import Images
from freewheel.methods import DEFAULT_LR
from freewheel.recipes.choice import method_maker
from freewheel.recipes.models import cnn, cnn_rgb, mlp
from freewheel.recipes.settings import (
    Defaults,
    Recipe,
    Settings,
    check_target,
    choose,
    common_arguments,
)

DATA: dict[str, Callable[[str], Images]] = {
    "fashion-mnist-small": data.fashion_mnist_small,
    "fashion-mnist": data.fashion_mnist,
    "cifar10": data.cifar10,
}
# Where methods depart from their own defaults, so that each learns with no further option. Accuracies: MLP,
# two workers, one epoch of the embedded images; synchronous has 0.835 there.
TUNED: dict[str, dict[str, Any]] = {
    # Without momentum the workers' own SGD is ten times slower: 0.77, 0.77, 0.75; with it 0.83, 0.81, 0.83.
    "local_sgd": {"momentum": 0.9},
    "parallel_sgd": {"momentum": 0.9},
    "elastic_averaging": {"momentum": 0.9},
    # Momentum multiplies the delay that the rule compensates for (eight workers: 0.51); a larger rate does
    # not (0.83).
    "delay_compensated": {"lr": 0.05},
    # Adagrad's first steps are as long as the rate, whatever the gradient: eight workers at once at 0.01 can
    # leave a CNN at chance. The paper's remedy is a warm start.
    "downpour": {"lr": 0.005, "warm_start": 50},
    "diloco": {"lr": 1e-3, "steps": 20},  # Adam's rate; 50 steps leave an epoch six exchanges
}
DEFAULTS = {
    # Small minibatches: staleness costs less per update, and one is enough to keep a core busy.
    "cnn": Defaults(batch_size=16, lr=DEFAULT_LR, epochs=3, methods=TUNED),
    "mlp": Defaults(batch_size=16, lr=DEFAULT_LR, epochs=3, methods=TUNED),
}
METRICS = ("accuracy", "loss")


def images(settings: Settings) -> Recipe:
    """Prepares image classification; the default is the CNN on the embedded part of Fashion-MNIST.

    Args:
        settings: ``data`` is one of ``DATA``, ``model`` "cnn" or "mlp".

    Raises:
        ConfigurationError: a setting cannot be used.
        DataError: the data cannot be had.

    Example:
        >>> from freewheel.recipes.images import images
        >>> from freewheel.recipes.settings import Settings
        >>> recipe = images(Settings(model="mlp"))
        >>> recipe.title, recipe.arguments["batch_size"]
        ('mlp on fashion-mnist-small', 16)
    """
    name = choose("data", settings.data, tuple(DATA), "images")
    model = choose("model", settings.model, tuple(DEFAULTS), "images")
    check_target(settings.budget.target, METRICS, "images")
    defaults = DEFAULTS[model]
    arguments = common_arguments(settings, defaults)
    train = DATA[name]("train")
    method = method_maker(settings.optimization, defaults.lr, arguments, defaults.methods)
    arguments |= {"loss": nn.CrossEntropyLoss(), "evaluate": DATA[name]("test")}
    return Recipe(_builder(model, train), train, arguments, method, f"{model} on {name}", train.note)


def _builder(model: str, train: Images) -> Callable[[], nn.Module]:
    if model == "mlp":
        return partial(mlp, (train.images[0].numel(), 256, len(train.classes)))
    return cnn if train.images.shape[1] == 1 else cnn_rgb

"""Which runs can be recorded: those whose workers meet in pulls and pushes only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from freewheel.errors import ConfigurationError
from freewheel.methods import Method
from freewheel.sources import Indexed, Source

ENGINES = ("threads", "serial")


def check_recordable(
    model: nn.Module, method: Method, engine: str, source: Source, workers: int, run_dir: Any
) -> None:
    """Refuses to record what could not be replayed bit for bit.

    Operations of the user's own that draw from PyTorch's process-wide generator (in a loss, in a data set)
    cannot be seen here; the replay then says that it does not match.

    Raises:
        ConfigurationError: no folder; an engine that takes no record; a method that reads live weights or
            updates layer by layer; data without a fixed order; random modules on several workers; a GPU.
    """
    if run_dir is None:
        raise ConfigurationError(
            "`record`=True needs `run_dir`, a folder for the recording, got None; name one"
        )
    if engine not in ENGINES:
        raise ConfigurationError(
            f"`record`=True works with the engines {' and '.join(ENGINES)}, got {engine!r}; {_remedy(engine)}"
        )
    _check_method(method)
    if not isinstance(source, Indexed):
        raise ConfigurationError(
            "`record`=True needs `data` whose examples can be had by their index, to fetch a batch again;"
            " give tensors, a map-style Dataset, or a DataLoader over one with num_workers=0, without bptt"
        )
    if any(parameter.is_cuda for parameter in model.parameters()):
        raise ConfigurationError(
            "`record`=True needs a model on the processor: sums on a GPU depend on its scheduling; use"
            " model.cpu(), or record=False"
        )
    drawing = list(drawing_modules(model)) if workers > 1 else []
    if drawing:
        raise ConfigurationError(
            f"`record`=True: {', '.join(drawing)} draw from PyTorch's one generator, which {workers} workers"
            " share in an order of chance; set their p to 0, use workers=1, or record=False"
        )


def _remedy(engine: str) -> str:
    if engine == "simulated":
        return "a simulated run needs no recording: the same seed gives the same run"
    return "use engine='threads', or record=False"


def _check_method(method: Method) -> None:
    if method.granularity == "layer":
        raise ConfigurationError(
            "`record`=True needs updates of the whole model, but granularity='layer' pushes them in pieces;"
            " use granularity='model'"
        )
    if method.exchange is None and method.rounds:
        raise ConfigurationError(
            f"`record`=True: {method.name} waits for everybody in every step, so the same seed gives the same"
            " run on every engine; use engine='serial' to look into it, or backup_workers=1 for rounds that"
            " do not wait for all"
        )
    if method.exchange is None:
        raise ConfigurationError(
            f"`record`=True needs workers with a copy of the weights, but {method.name} reads them live,"
            " while others write; use stale_synchronous() or downpour(), or record=False"
        )


def drawing_modules(model: nn.Module) -> Iterator[str]:
    """The modules that draw while they train, by name."""
    for name, module in model.named_modules():
        trains = module.training or not model.training  # a model in evaluation mode is trained as a whole
        if trains and _draws(module):
            yield f"{name or 'the model'} ({type(module).__name__})"


def _draws(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return bool(module.p > 0)
    if isinstance(module, nn.RReLU):
        return bool(module.lower != module.upper)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    return isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)

"""One step before the run, on a copy: what is wrong with model, loss and data shows at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError, DataError, FreewheelError
from freewheel.params import running_statistics
from freewheel.randomness import generators_kept
from freewheel.sources import Carry, Lease, Source
from freewheel.tasks import Supervised

ACCEPT = "The model and the loss must accept what `data` gives"
DO_WITHOUT = "Choose a batch size that leaves no such rest, or give a DataLoader with drop_last=True"


def check_step(module: nn.Module, task: Supervised, source: Source) -> None:
    """Computes one loss and its gradient on the first batch, changing nothing.

    Raises:
        DataError: the loss of the first batch is not finite.
        ConfigurationError: the model does not fit the data, or the loss is no scalar that depends on the
            weights.
    """
    with generators_kept(module):
        twin = _copy(module, task.channels_last)
        before = [*running_statistics(twin), *twin.named_parameters()]
        places = [tensor.data_ptr() for _, tensor in before]
        loss = _loss(twin, task, _batch(source.first))
        _check_loss(loss)
        _check_places(twin, before, places)
        _check_gradient(twin, loss, task.granularity)
        short = _batch(source.short)
        if short is not None:
            _loss(twin, task, short, "short batch at the end of an epoch", DO_WITHOUT)
    if not math.isfinite(loss.item()):
        raise DataError(
            f"the loss of the first batch is {loss.item()}; look for NaN or Inf in the inputs and for labels"
            " out of range"
        )


def _batch(give: Callable[[], Any]) -> Any:
    try:
        return give()
    except FreewheelError:
        raise
    except Exception as error:
        raise DataError(f"`data` failed to give a batch: {type(error).__name__}: {error}") from error


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise ConfigurationError(
            f"the loss must be a scalar tensor, got {type(loss).__name__}; return the loss itself, without"
            " .item(), and leave backward() to the library"
        )
    if loss.numel() != 1:
        raise ConfigurationError(
            f"the loss must be a scalar tensor, got shape {tuple(loss.shape)}; take its mean: loss.mean()"
        )
    if not loss.requires_grad:
        raise ConfigurationError(
            "the loss does not depend on a trainable parameter; compute it from the module's output, without"
            " .item(), .detach() or torch.no_grad()"
        )


def _check_gradient(module: nn.Module, loss: Tensor, granularity: str) -> None:
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        if granularity == "layer":
            used = _backward_by_layers(weights, loss)
        else:
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            used = sum(gradient is not None for gradient in gradients)
    except Exception as error:
        raise ConfigurationError(
            f"the backward pass failed on the first batch: {type(error).__name__}: {error}"
        ) from error
    if not used:
        raise ConfigurationError(
            "the loss depends on no parameter of the module that it was given; `step(module, batch)` must use"
            " its argument `module`, each worker's own, and not a variable from outside"
        )


def _backward_by_layers(weights: list[nn.Parameter], loss: Tensor) -> int:
    """How many weights have a gradient; each is freed at once, as the run will do."""
    used = []

    def free(weight: Tensor) -> None:
        weight.grad = None
        used.append(True)

    for weight in weights:
        weight.register_post_accumulate_grad_hook(free)  # type: ignore[no-untyped-call]  # torch's is untyped
    loss.backward()  # type: ignore[no-untyped-call]  # torch's is untyped
    return len(used)


def _check_places(module: nn.Module, before: list[tuple[str, Tensor]], places: list[int]) -> None:
    """Weights and statistics are views of shared vectors: a new tensor in their place would be lost."""
    after = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    for (name, tensor), place in zip(before, places, strict=True):
        if after.get(name) is not tensor or tensor.data_ptr() != place:
            raise ConfigurationError(
                f"the forward pass puts a new tensor in the place of {name!r}; change it in place:"
                f" self.{name.rpartition('.')[2]}.copy_(...), and do not call flatten_parameters() in it"
            )


def _copy(module: nn.Module, channels_last: bool) -> nn.Module:
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise ConfigurationError(
            f"`model` ({type(module).__name__}) cannot be copied for the workers: {error}"
        ) from error
    if channels_last:
        twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return twin if module.training else twin.train()


def _loss(
    module: nn.Module, task: Supervised, batch: Any, which: str = "first step", remedy: str = ACCEPT
) -> Any:
    lease = Lease(0, batch, 0, carry=Carry() if task.recurrent else None)
    try:
        return task.loss_of(module, lease)
    except FreewheelError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".rstrip(".")
        raise ConfigurationError(
            f"the {which} failed, on a batch of {_shapes(batch)}: {why}. {remedy}"
        ) from error


def _shapes(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key}: {_shapes(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        return "(" + ", ".join(_shapes(item) for item in batch) + ")"
    return type(batch).__name__

"""Supervised learning: a minibatch, a loss, a gradient."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError
from freewheel.sources import Batch, Carry, Lease, count_samples
from freewheel.tasks.base import StepReport, WorkerContext
from freewheel.update import Granularity

Loss = Callable[[Any, Any], Tensor]
Step = Callable[[nn.Module, Batch], Tensor]
Metric = Callable[[Any, Any], Any]


@final
@dataclass(frozen=True)
class Supervised:
    """The gradient of a loss on a minibatch.

    Give either ``loss(prediction, target)`` for batches ``(inputs, targets)``, or ``step(module, batch) ->
    loss`` for anything else. With ``recurrent=True`` the module is called as ``module(inputs, hidden)`` and
    returns ``(prediction, hidden)``; the hidden state goes on to the stream's next segment, detached:
    truncated back-propagation through time (Williams and Peng 1990).

    Attributes:
        loss: of a prediction and a target, a scalar tensor.
        step_function: ``step(module, batch) -> loss``, computes the loss itself.
        granularity: "model" pushes one update a step; "layer" pushes each parameter's gradient in the
            backward pass, the moment it exists, and frees it.
        recurrent: carry a hidden state.
        metrics: further ``metric(prediction, target)``, averaged over the samples of an evaluation.
        autocast: bfloat16 arithmetic in the forward pass.
        device: where batches go; None leaves them where they are.
        channels_last: give 4-D inputs the channels_last format.
    """

    loss: Loss | None = None
    step_function: Step | None = None
    granularity: Granularity = "model"
    recurrent: bool = False
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    autocast: bool = False
    device: torch.device | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        if (self.loss is None) == (self.step_function is None):
            raise ConfigurationError(
                "give exactly one of `loss`, such as torch.nn.CrossEntropyLoss(), and `step(module, batch)"
                f" -> loss`, got {'neither' if self.loss is None else 'both'}"
            )
        self._check_callables()
        if self.recurrent and self.loss is None:
            raise ConfigurationError(
                "`bptt` needs `loss`, not `step`: the hidden state is carried by the library"
            )

    def _check_callables(self) -> None:
        functions: dict[str, Any] = {"loss": self.loss, "step": self.step_function, **self.metrics}
        for name, function in functions.items():
            if isinstance(function, type) and issubclass(function, nn.Module):
                raise ConfigurationError(f"`{name}` is a class; make one of it: {function.__name__}()")
            if function is not None and not callable(function):
                where = f"`metrics`[{name!r}]" if name in self.metrics else f"`{name}`"
                raise ConfigurationError(f"{where} must be a function, got {function!r}")
        if self.metrics and self.loss is None:
            raise ConfigurationError(
                "`metrics` need `loss`: with `step` the library sees no prediction; give a function as"
                " `evaluate`"
            )

    def init(self, context: WorkerContext) -> None:
        """Registers the hooks of layer-wise updates on the worker's replica."""
        if self.granularity == "layer":
            for entry, weight in enumerate(context.weights):
                hook = partial(_push_piece, context, entry)
                weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]  # torch's is untyped

    def step(self, context: WorkerContext, lease: Lease, state: None) -> StepReport:
        """Forward, backward, push."""
        context.samples = lease.samples
        if self.autocast:
            with self._precision():
                loss, carried = self._forward(context.module, lease.batch, lease.carry)
        else:
            loss, carried = self._forward(context.module, lease.batch, lease.carry)
        if self.granularity == "layer":
            value = self._push_layers(context, loss)
        else:
            value = self._push_whole(context, loss)
        if lease.carry is not None:
            # A state that is not finite would spoil every later segment of the stream.
            lease.carry.value = carried if math.isfinite(value) else None
        return StepReport(value, lease.samples)

    def loss_of(self, module: nn.Module, lease: Lease) -> Tensor:
        """The loss alone, as a step would compute it."""
        with self._precision():
            return self._forward(module, lease.batch, lease.carry)[0]

    def _push_whole(self, context: WorkerContext, loss: Tensor) -> float:
        gradients = torch.autograd.grad(loss, context.weights, allow_unused=True)
        value = loss.item()
        if not math.isfinite(value):
            context.give_up("non-finite loss")
            return value
        context.push_gradients(list(gradients))
        return value

    def _push_layers(self, context: WorkerContext, loss: Tensor) -> float:
        value = loss.item()  # before the backward pass, which already updates
        if not math.isfinite(value):
            context.give_up("non-finite loss")
            return value
        loss.backward()  # type: ignore[no-untyped-call]  # torch's is untyped
        context.push_gradients([])
        return value

    def measure(self, module: nn.Module, batch: Batch, carry: Any) -> tuple[dict[str, float], int, Any]:
        """Sums over a batch of the loss, of the accuracy for integer classes, and of the user's metrics."""
        batch = self.place(batch)
        with self._precision():
            if self.step_function is not None:
                samples = count_samples(batch)
                return {"loss": float(self.step_function(module, batch)) * samples}, samples, None
            prediction, target, carried = self._predict(module, batch, carry)
            assert self.loss is not None
            loss = self.loss(prediction, target)
        samples = target.numel() if self.recurrent else count_samples(target)
        sums = {"loss": float(loss) * samples}
        if _is_classification(prediction, target):
            right = float((prediction.argmax(1) == target).sum())
            sums["accuracy"] = right * samples / max(target.numel(), 1)
        for name, metric in self.metrics.items():
            sums[name] = float(metric(prediction, target)) * samples
        return sums, samples, carried

    def place(self, batch: Batch) -> Batch:
        """The batch on the task's device, 4-D floating tensors in its memory format."""
        if isinstance(batch, Tensor):
            if self.device is not None and batch.device != self.device:
                batch = batch.to(self.device, non_blocking=True)
            if self.channels_last and batch.dim() == 4 and batch.is_floating_point():
                batch = batch.contiguous(memory_format=torch.channels_last)
            return batch
        if isinstance(batch, Mapping) and not isinstance(batch, dict) and hasattr(batch, "to"):
            return batch if self.device is None else batch.to(self.device)  # Hugging Face's BatchEncoding
        if isinstance(batch, dict):
            return {key: self.place(value) for key, value in batch.items()}
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(self.place(item) for item in batch))
        if isinstance(batch, list | tuple):
            return type(batch)(self.place(item) for item in batch)
        return batch

    def _forward(self, module: nn.Module, batch: Batch, carry: Carry | None) -> tuple[Tensor, Any]:
        if self.device is not None or self.channels_last:
            batch = self.place(batch)
        if self.step_function is not None:
            return self.step_function(module, batch), None
        assert self.loss is not None
        if not self.recurrent:
            inputs, target = batch
            return self.loss(module(inputs), target), None
        prediction, target, carried = self._predict(module, batch, carry.value if carry else None)
        return self.loss(prediction, target), carried

    def _predict(self, module: nn.Module, batch: Batch, carry: Any) -> tuple[Any, Any, Any]:
        inputs, target = batch
        if not self.recurrent:
            return module(inputs), target, None
        prediction, hidden = module(inputs, carry)
        return prediction.flatten(0, 1), target.flatten(), _detach(hidden)

    def _precision(self) -> AbstractContextManager[Any]:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type if self.device else "cpu", dtype=torch.bfloat16)


def _push_piece(context: WorkerContext, entry: int, weight: Tensor) -> None:
    gradient, weight.grad = weight.grad, None
    context.push_gradients([gradient], (entry,), last=False)


def _is_classification(prediction: Any, target: Any) -> bool:
    return (
        isinstance(prediction, Tensor)
        and isinstance(target, Tensor)
        and target.dtype == torch.int64
        and prediction.dim() == target.dim() + 1
    )


def _detach(hidden: Any) -> Any:
    if isinstance(hidden, Tensor):
        return hidden.detach()
    if isinstance(hidden, list | tuple):
        return type(hidden)(_detach(item) for item in hidden)
    return hidden

"""The arithmetic of the descents: one call over all weights.

PyTorch's fused kernels where they exist for the device, ``torch._foreach_*`` calls elsewhere; a test holds
them equal. All tensors are changed in place, gradients included.
"""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor]


def fused_devices(kernel: str) -> frozenset[str]:
    """Types of device that this PyTorch has the kernel for; having it at all may mean the CPU only."""
    if not hasattr(torch, kernel):
        return frozenset()
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(device for device in ("cpu", "cuda") if has(f"aten::{kernel}", device.upper()))


FUSED_SGD = fused_devices("_fused_sgd_")
FUSED_ADAGRAD = fused_devices("_fused_adagrad_")
FUSED_ADAM = fused_devices("_fused_adam_")
FUSED_ADAMW = fused_devices("_fused_adamw_")


def sgd(
    weights: Tensors,
    gradients: Tensors,
    momenta: Tensors,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """One step of :func:`freewheel.rules.sgd`; no momenta where `momentum` is 0."""
    if weights[0].device.type in FUSED_SGD:
        # is_first_step=True would copy the gradient into the buffer; zero buffers come to the same
        torch._fused_sgd_(
            weights,
            gradients,
            momenta,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=nesterov,
            maximize=False,
            is_first_step=False,
        )
        return
    if weight_decay:
        torch._foreach_add_(gradients, weights, alpha=weight_decay)
    if momentum:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
        if nesterov:
            torch._foreach_add_(gradients, momenta, alpha=momentum)
        else:
            gradients = momenta
    torch._foreach_add_(weights, gradients, alpha=-lr)


def adagrad(
    weights: Tensors,
    gradients: Tensors,
    sums: Tensors,
    steps: Tensors,
    lr: float,
    eps: float,
    lr_decay: float,
    weight_decay: float,
) -> None:
    """One step of :func:`freewheel.rules.adagrad`; the steps count this one too."""
    if weights[0].device.type in FUSED_ADAGRAD:
        torch._fused_adagrad_(
            weights,
            gradients,
            sums,
            steps,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            eps=eps,
            maximize=False,
        )
        return
    if weight_decay:
        torch._foreach_add_(gradients, weights, alpha=weight_decay)
    torch._foreach_addcmul_(sums, gradients, gradients, value=1.0)
    roots = list(torch._foreach_sqrt(sums))
    torch._foreach_add_(roots, eps)
    if lr_decay:
        scales = [-lr / (1.0 + (step.item() - 1.0) * lr_decay) for step in steps]
        torch._foreach_addcdiv_(weights, gradients, roots, scales)
    else:
        torch._foreach_addcdiv_(weights, gradients, roots, value=-lr)


def rmsprop(
    weights: Tensors,
    gradients: Tensors,
    state: dict[str, Tensors],
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
) -> None:
    """One step of :func:`freewheel.rules.rmsprop`; the state has a mean if centered, a momentum if used."""
    squares = state["square"]
    torch._foreach_mul_(squares, alpha)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - alpha)
    if "mean" in state:
        torch._foreach_lerp_(state["mean"], gradients, weight=1.0 - alpha)
        roots = list(torch._foreach_addcmul(squares, state["mean"], state["mean"], value=-1.0))
        torch._foreach_clamp_min_(roots, 0.0)
        torch._foreach_sqrt_(roots)
    else:
        roots = list(torch._foreach_sqrt(squares))
    torch._foreach_add_(roots, eps)
    if momentum:
        torch._foreach_mul_(state["momentum"], momentum)
        torch._foreach_addcdiv_(state["momentum"], gradients, roots)
        torch._foreach_add_(weights, state["momentum"], alpha=-lr)
    else:
        torch._foreach_addcdiv_(weights, gradients, roots, value=-lr)


def adam(
    weights: Tensors,
    gradients: Tensors,
    means: Tensors,
    squares: Tensors,
    steps: Tensors,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """One step of :func:`freewheel.rules.adam`, or of adamw if decoupled; the steps count this one too."""
    if weights[0].device.type in (FUSED_ADAMW if decoupled else FUSED_ADAM):
        (torch._fused_adamw_ if decoupled else torch._fused_adam_)(
            weights,
            gradients,
            means,
            squares,
            [],
            steps,
            lr=lr,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        return
    if weight_decay and decoupled:
        torch._foreach_mul_(weights, 1.0 - lr * weight_decay)
    elif weight_decay:
        torch._foreach_add_(gradients, weights, alpha=weight_decay)
    torch._foreach_lerp_(means, gradients, weight=1.0 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - betas[1])
    counts = [step.item() for step in steps]
    roots = list(torch._foreach_sqrt(squares))
    torch._foreach_div_(roots, [(1.0 - betas[1] ** count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(weights, means, roots, [-lr / (1.0 - betas[0] ** count) for count in counts])


_ONE = torch.ones(())


def count(steps: Tensors) -> None:
    """Adds one to every step count."""
    if steps[0].is_cpu:
        # A plain 1 would be wrapped into a tensor once per entry, which takes twice the time.
        torch._foreach_add_(steps, _ONE, alpha=1.0)
    else:
        torch._foreach_add_(steps, 1.0)

"""Compression: what a worker does to an update so that it takes fewer bytes on a network.

These rules run on the worker, before the push. No bytes are packed: the update's gradients are replaced by
what the receiver would decode, and ``update.wire_bytes`` says how many bytes the message would take: values,
their indices and scales, for both sides know the layout. The tensors that came are left as they are, since
autograd may share them. One such rule a worker: an update that is compressed already is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from freewheel.errors import ConfigurationError
from freewheel.rules.arguments import described, present, whole
from freewheel.rules.base import Rule, RuleContext, Span, State, stateless
from freewheel.rules.guard import norm
from freewheel.schedules import number
from freewheel.update import Update

INDEX_BYTES = 4  # int32
VALUE_BYTES = 4  # float32
LEVELS = 127  # of an int8 on either side of zero


def top_k(share: float, error_feedback: bool = True) -> Rule:
    """Sends the elements of the largest absolute value, with their indices.

    The share is of every entry (weight tensor) by itself, at least one element of each, so that a layer with
    small gradients is not silenced by one with large ones. With error feedback, what was not sent is added to
    the next gradient of the entry: everything is sent in the end. An update that is not finite passes as it
    is and leaves no trace in what is kept back; the server's :func:`~freewheel.rules.finite` drops it.

    Eight bytes an element that is sent: an int32 index and a float32 value. Above a share of one half that is
    more than the gradient takes uncompressed.

    Args:
        share: of the elements of an entry, in (0, 1].
        error_feedback: keep what was not sent; state of the weights' size.

    Raises:
        ConfigurationError: `share` out of its range.

    Example:
        >>> top_k(0.01).describe
        'top_k(share=0.01)'

    References:
        Stich, Cordonnier and Jaggi 2018, arXiv:1809.07599, algorithm 1 (Mem-SGD), with the learning rate on
        the server, so that what is kept back is a gradient; Lin et al. 2018, arXiv:1712.01887, algorithm 1,
        without its momentum correction.
    """
    kept = number("share", share, 0.0, 1.0, "0.01 sends one element in a hundred", closed=True)
    if kept == 0:
        raise ConfigurationError(f"`share` must be > 0, got {share!r}; 0.01 sends one element in a hundred")

    def init(span: Span) -> State:
        return {"residual": span.like()} if error_feedback else {}

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        _uncompressed(update)
        if not math.isfinite(norm(present(update))):
            return update
        sent = 0
        for i, gradient in enumerate(update.gradients):
            if gradient is None:
                continue
            total = state["residual"][i].add_(gradient) if error_feedback else gradient
            largest = _largest(total, kept)
            update.gradients[i] = chosen = _only(total, largest)
            if error_feedback:
                total.sub_(chosen)  # exact: x - x and x - 0
            sent += largest.numel()
        update.wire_bytes = sent * (INDEX_BYTES + VALUE_BYTES)
        return update

    settings = {"share": kept, "error_feedback": error_feedback}
    return Rule("piece", init, apply, described(top_k, **settings))


def half() -> Rule:
    """Rounds to float16: two bytes an element.

    A number beyond the largest float16, 65504, becomes that; NaN and infinities stay, so that the server's
    :func:`~freewheel.rules.finite` sees them. Below about 6e-8 a number becomes zero.

    Example:
        >>> half().describe
        'half()'

    References:
        Micikevicius et al. 2018, arXiv:1710.03740, for the format; without loss scaling, as the server's
        state is float32.
    """
    most = torch.finfo(torch.float16).max

    def encode(gradient: Tensor, context: RuleContext) -> Tensor:
        rounded = gradient.clamp(-most, most).half().to(gradient.dtype)
        return torch.where(gradient.isinf(), gradient, rounded)

    return _dense(encode, lambda elements: 2 * elements, "half()")


def eight_bit(block: int = 256) -> Rule:
    r"""Rounds to 255 levels by chance, so that the mean is right: one byte an element, and a scale a block.

    In a block with the largest absolute value :math:`s`, :math:`x = 127 g / s` becomes
    :math:`\lfloor x \rfloor`, or the next integer with probability :math:`x - \lfloor x \rfloor`; decoded it
    is :math:`s / 127` times that, with expectation :math:`g`. Blocks do not cross entries. A NaN or an
    infinity makes its whole block NaN.

    Draws from the context's generator.

    Args:
        block: elements that share a float32 scale, >= 1.

    Raises:
        ConfigurationError: `block` is no whole number >= 1; and without a generator, when an update comes.

    Example:
        >>> eight_bit(block=512).describe
        'eight_bit(block=512)'

    References:
        Alistarh et al. 2017, arXiv:1610.02132 (QSGD), section 3.1 with s = 127 levels, in buckets scaled by
        their largest element as in section 4; without its entropy coding.
    """
    size = whole("block", block, 1, "256 adds 4 bytes of scale to 256 of values")

    def encode(gradient: Tensor, context: RuleContext) -> Tensor:
        if context.generator is None:
            raise ConfigurationError(
                "`context.generator` is None, but eight_bit() draws; set it to one seeded for the worker"
            )
        flat = gradient.reshape(-1)
        blocks = pad(flat, (0, -len(flat) % size)).view(-1, size)
        decoded = _rounded(blocks, context.generator).view(-1)[: len(flat)].view(gradient.shape)
        return torch.empty_like(gradient, memory_format=torch.preserve_format).copy_(decoded)

    def count(elements: int) -> int:
        return elements + VALUE_BYTES * -(-elements // size)

    return _dense(encode, count, described(eight_bit, block=size))


def _dense(
    encode: Callable[[Tensor, RuleContext], Tensor], count: Callable[[int], int], describe: str
) -> Rule:
    """A rule that sends every element, in fewer bytes."""

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        _uncompressed(update)
        for i, gradient in enumerate(update.gradients):
            if gradient is not None:
                update.gradients[i] = encode(gradient, context)
        update.wire_bytes = sum(count(gradient.numel()) for gradient in present(update))
        return update

    return Rule("piece", stateless, apply, describe)


def _largest(values: Tensor, share: float) -> Tensor:
    """Indices of the share that is largest in absolute value, in the flattened tensor."""
    count = max(1, round(share * values.numel()))
    return values.reshape(-1).abs().topk(count, sorted=False).indices


def _only(values: Tensor, indices: Tensor) -> Tensor:
    """The values at these indices, zero elsewhere; in new memory, with the strides of the values."""
    flat = torch.zeros(values.numel(), dtype=values.dtype, device=values.device)
    flat[indices] = values.reshape(-1)[indices]
    if values.is_contiguous():
        return flat.view(values.shape)
    return torch.empty_like(values, memory_format=torch.preserve_format).copy_(flat.view(values.shape))


def _rounded(blocks: Tensor, generator: torch.Generator) -> Tensor:
    """What the rounding leaves of each row of ``(blocks, size)``."""
    scales = blocks.abs().amax(1, keepdim=True)
    scaled = blocks / scales.masked_fill(scales == 0, 1.0)  # first: the largest is then exactly one
    scaled *= LEVELS
    levels = scaled.floor()
    drawn = torch.rand(blocks.shape, generator=generator, device=generator.device).to(blocks.device)
    levels += drawn < scaled.sub_(levels)
    return levels.mul_(scales / LEVELS)


def _uncompressed(update: Update) -> None:
    if update.wire_bytes is not None:
        raise ConfigurationError(
            f"the update is compressed already, to {update.wire_bytes} bytes; give the worker one rule of"
            " compression, not several"
        )

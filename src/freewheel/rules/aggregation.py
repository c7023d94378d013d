"""Aggregation: several updates become one. Each is absorbed until there are enough; the last one brings all.

What all these rules have in common: a gradient that is None counts as zero, unless it is None in all `n`. The
aggregate counts the examples of all its updates, chosen or not, so that schedules see every example that was
computed. Updates that wait when the run ends are never applied.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from freewheel.rules import kernels
from freewheel.rules.arguments import described, present, whole
from freewheel.rules.base import Rule, RuleContext, Span, State
from freewheel.update import Update

COUNTERS = ("waiting", "samples", "pushes")

Vector = list[Tensor]
"""One update's gradients for the entries that any of the updates has a gradient for."""


def average(n: int) -> Rule:
    r"""The mean of `n` updates, weighted by their samples: :math:`\sum_i b_i g_i / \sum_i b_i`.

    The step is as long as that of one update, and is taken once in `n` updates; :func:`accumulate` takes the
    way of all `n` at once. Memory: one buffer, whatever `n` is.

    Args:
        n: updates >= 1, from any workers, in the order they come.

    Raises:
        ConfigurationError: `n` is no whole number >= 1.

    Example:
        >>> average(4).describe
        'average(n=4)'

    References:
        Zhang, Gupta, Lian and Liu 2016, arXiv:1511.05950, section 3 (n-softsync); weighted here.
    """
    return _summing(average, n, float, lambda samples: 1.0 / max(1, samples))


def accumulate(n: int) -> Rule:
    r"""The sum of `n` updates: :math:`\sum_i g_i`, whatever their samples.

    One step that goes as far as `n` steps at the same weights would; for gradients that are sums already, and
    for pseudo-gradients. Beside :func:`average` the learning rate counts `n` times.

    Args:
        n: updates >= 1, from any workers, in the order they come.

    Raises:
        ConfigurationError: `n` is no whole number >= 1.

    Example:
        >>> accumulate(4).describe
        'accumulate(n=4)'
    """
    return _summing(accumulate, n, lambda samples: 1.0, lambda samples: 1.0)


def _summing(
    factory: Callable[[int], Rule], n: int, weight: Callable[[int], float], scale: Callable[[int], float]
) -> Rule:
    """A rule that needs no more than a running sum."""

    def add(position: int, update: Update, state: State) -> None:
        pairs = zip(state["sum"], update.gradients, strict=True)
        sums = [total for total, gradient in pairs if gradient is not None]
        if sums:
            torch._foreach_add_(sums, present(update), alpha=weight(update.samples))

    def emit(update: Update, state: State, entries: list[int], samples: int) -> Vector:
        add(count - 1, update, state)
        sums = [state["sum"][i] for i in entries]
        result = list(torch._foreach_mul(sums, scale(samples)))
        torch._foreach_zero_(sums)
        return result

    count = updates(n)
    return gathering(count, described(factory, n=count), lambda span: {"sum": span.like()}, add, emit)


def gathering(
    n: int,
    describe: str,
    init: Callable[[Span], State],
    absorb: Callable[[int, Update, State], None],
    emit: Callable[[Update, State, list[int], int], Vector],
) -> Rule:
    """A rule that absorbs n - 1 updates and hands on the aggregate in the place of the n-th.

    It does the bookkeeping: how many wait, with how many samples, and which entries had a gradient at all.

    Args:
        n: updates, checked.
        describe: the settings, for the report.
        init: makes what ``absorb`` writes to.
        absorb: (position, update, state): keeps an update, which is the position-th from 0.
        emit: (last update, state, entries, samples): the aggregate for those entries, in any memory.
    """

    def start(span: Span) -> State:
        counters = {name: span.once(torch.zeros((), dtype=torch.int64)) for name in COUNTERS}
        return {**init(span), **counters, "present": span.counts()}

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        waiting, samples, pushes = (state[name][0] for name in COUNTERS)
        _note(update, state)
        if waiting.item() < n - 1:
            absorb(int(waiting.item()), update, state)
            waiting += 1
            samples += update.samples
            pushes += 1 + context.released  # an aggregate that is absorbed again stands for several pushes
            context.verdict, context.released = "absorbed", 0
            return None
        total = update.samples + int(samples.item())
        counts = torch.stack(state["present"]).tolist() if state["present"] else []
        entries = [i for i, count in enumerate(counts) if count]
        if n > 1 and entries:
            _deliver(update, entries, emit(update, state, entries, total))
        update.samples = total
        context.released += int(pushes.item())
        torch._foreach_zero_([waiting, samples, pushes, *state["present"]])
        update.pulled = None  # of the last one only
        return update

    return Rule("update", start, apply, describe, exclusive=True)


def _note(update: Update, state: State) -> None:
    pairs = zip(state["present"], update.gradients, strict=True)
    noted = [count for count, gradient in pairs if gradient is not None]
    if noted:
        kernels.count(noted)


def _deliver(update: Update, entries: list[int], result: Vector) -> None:
    """Writes the aggregate to memory of the update's own: the next rule works in place on it."""
    for entry, value in zip(entries, result, strict=True):
        gradient = update.gradients[entry]
        if gradient is None:
            update.gradients[entry] = value.clone()
        elif gradient is not value:
            gradient.copy_(value)


def updates(n: int) -> int:
    """The number of updates that an aggregate is made of, checked."""
    return whole("n", n, 1, "give the number of updates to gather")

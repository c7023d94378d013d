"""Robust aggregation: of several updates, some may be arbitrary without harm to what becomes of them.

What holds for all of :mod:`freewheel.rules.aggregation` holds here. Samples do not weight an update: a bad
one would claim many. Memory: n - 1 buffers, made once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from freewheel.errors import ConfigurationError
from freewheel.rules.aggregation import Vector, gathering, updates
from freewheel.rules.arguments import described, whole
from freewheel.rules.base import Rule, Span, State
from freewheel.rules.guard import norm
from freewheel.update import Update


def median(n: int) -> Rule:
    """The median of `n` updates, coordinate by coordinate; of an even number, the mean of the middle two.

    Bears fewer than half of the updates being arbitrary. NaN counts as infinity.

    Args:
        n: updates >= 1.

    Raises:
        ConfigurationError: `n` is no whole number >= 1.

    Example:
        >>> median(5).describe
        'median(n=5)'

    References:
        Yin, Chen, Ramchandran and Bartlett 2018, arXiv:1803.01498, definition 1 and algorithm 1, option I.
    """
    count = updates(n)
    trim = (count - 1) // 2  # leaves the middle one or two
    return _slotted(count, described(median, n=count), lambda vectors: _trimmed(vectors, trim))


def trimmed_mean(n: int, trim: int) -> Rule:
    """The mean of `n` updates without the `trim` largest and smallest, coordinate by coordinate.

    Bears `trim` arbitrary updates. NaN counts as infinity.

    Args:
        n: updates >= 1.
        trim: how many to leave out at each end, >= 0 and less than half of `n`.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> trimmed_mean(8, trim=2).describe
        'trimmed_mean(n=8, trim=2)'

    References:
        Yin, Chen, Ramchandran and Bartlett 2018, arXiv:1803.01498, definition 2 and algorithm 1, option II,
        with beta = trim / n.
    """
    count = updates(n)
    off = whole("trim", trim, 0, "give the number of bad updates to bear among `n`")
    if 2 * off >= count:
        raise ConfigurationError(
            f"`trim` must leave some of `n`={count} updates, got {trim}; use at most {(count - 1) // 2}"
        )
    return _slotted(count, described(trimmed_mean, n=count, trim=off), lambda vectors: _trimmed(vectors, off))


def krum(n: int, faulty: int, select: int = 1) -> Rule:
    r"""Krum: the update that is closest to the others; with `select` > 1, the mean of the closest few.

    The score of an update is the sum of its squared distances to the n - faulty - 2 updates nearest to it, as
    whole vectors; the lowest scores win, the earlier update where they are equal. A distance that is not
    finite counts as infinity.

    Args:
        n: updates >= 3.
        faulty: how many of them may be arbitrary, at most (n - 3) / 2.
        select: how many to take the mean of, from 1 to n - faulty (multi-Krum).

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> krum(8, faulty=2).describe
        'krum(n=8, faulty=2)'

    References:
        Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine learning with adversaries: Byzantine
        tolerant gradient descent", section 4; multi-Krum is of section 6.
    """
    count = whole("n", n, 3, "Krum compares updates with their neighbours; use median(n) for fewer")
    bad = whole("faulty", faulty, 0, "give the number of bad updates to bear among `n`")
    best = whole("select", select, 1, "1 is Krum itself")
    if count < 2 * bad + 3:
        raise ConfigurationError(
            f"`n` must be >= 2 * faulty + 3 = {2 * bad + 3}, got {n}; gather more updates, or bear fewer bad"
        )
    if best > count - bad:
        raise ConfigurationError(f"`select` must be <= n - faulty = {count - bad}, got {select}; use that")

    def combine(vectors: list[Vector]) -> Vector:
        scores = krum_scores(vectors, count - bad - 2)
        chosen = sorted(range(count), key=scores.__getitem__)[:best]
        return _mean([vectors[i] for i in sorted(chosen)])

    return _slotted(count, described(krum, n=count, faulty=bad, select=best), combine)


def krum_scores(vectors: list[Vector], neighbours: int) -> list[float]:
    """For every vector, the sum of the squared distances to those nearest to it, itself left out."""
    count = len(vectors)
    squares = [[0.0] * count for _ in range(count)]
    for i in range(count):
        for j in range(i):
            # differences, not inner products: those lose what is small beside a bad update's size
            distance = norm(list(torch._foreach_sub(vectors[i], vectors[j])))
            squares[i][j] = squares[j][i] = distance * distance if math.isfinite(distance) else math.inf
    return [sum(sorted(squares[i][:i] + squares[i][i + 1 :])[:neighbours]) for i in range(count)]


def _trimmed(vectors: list[Vector], trim: int) -> Vector:
    """Sorts the vectors in place, coordinate by coordinate, and means what is not trimmed.

    A sorting network of minima and maxima: they go over whole tensors in order, eight times as fast as
    ``torch.sort`` across eight of them.
    """
    if trim:
        for vector in vectors:
            for tensor in vector:
                tensor.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        for turn in range(len(vectors)):
            for low, high in zip(vectors[turn % 2 :: 2], vectors[turn % 2 + 1 :: 2], strict=False):
                lower = torch._foreach_minimum(low, high)
                torch._foreach_maximum_(high, low)
                torch._foreach_copy_(low, lower)
    return _mean(vectors[trim : len(vectors) - trim])


def _mean(vectors: list[Vector]) -> Vector:
    """The mean, in the memory of the first."""
    total = vectors[0]
    for vector in vectors[1:]:
        torch._foreach_add_(total, vector)
    if len(vectors) > 1:
        torch._foreach_mul_(total, 1 / len(vectors))
    return total


def _slotted(n: int, describe: str, combine: Callable[[list[Vector]], Vector]) -> Rule:
    """A rule that needs all updates at hand: n - 1 slots, and the last update itself."""

    def init(span: Span) -> State:
        return {str(slot): span.like() for slot in range(n - 1)}

    def keep(position: int, update: Update, state: State) -> None:
        for slot, gradient in zip(state[str(position)], update.gradients, strict=True):
            if gradient is None:
                slot.zero_()
            else:
                slot.copy_(gradient)

    def emit(update: Update, state: State, entries: list[int], samples: int) -> Vector:
        vectors = [[state[str(slot)][i] for i in entries] for slot in range(n - 1)]
        own = [update.gradients[i] for i in entries]
        last = [torch.zeros_like(slot) if g is None else g for slot, g in zip(vectors[0], own, strict=True)]
        return combine([*vectors, last])

    return gathering(n, describe, init, keep, emit)

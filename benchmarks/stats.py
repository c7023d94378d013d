"""Medians, ratios and their intervals; nothing here knows what was measured."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """An interval with the confidence that it really has: five values alone cannot give 95 %."""

    low: float
    high: float
    confidence: float


class Spread(NamedTuple):
    """How repeated measurements lie."""

    runs: int
    median: float
    minimum: float
    lower_quartile: float
    upper_quartile: float
    maximum: float


def spread(values: Sequence[float]) -> Spread:
    """Median, quartiles and extremes.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        Spread(runs=3, median=2.0, minimum=1.0, lower_quartile=1.5, upper_quartile=2.5, maximum=3.0)
    """
    _check_some(values)
    if len(values) == 1:
        lower = upper = values[0]
    else:
        lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(len(values), statistics.median(values), min(values), lower, upper, max(values))


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round: what slows a whole round down cancels.

    Example:
        >>> paired_ratios([2.0, 9.0], [1.0, 3.0])
        [2.0, 3.0]
    """
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Two-sided interval of the median from order statistics: no assumption but independence.

    The values ranked k and n + 1 - k enclose the median with probability ``1 - 2 P(Binomial(n, 1/2) < k)``.
    Fewer than six values cannot reach 95 %: then it is the extremes, with the confidence that they give.

    Args:
        values: n of them.
        level: wanted confidence.

    Example:
        >>> median_interval([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        Interval(low=1.0, high=6.0, confidence=0.96875)
    """
    rank = _rank(len(values), (1 - level) / 2)
    ordered = sorted(values)
    return Interval(ordered[rank - 1], ordered[-rank], 1 - 2 * _below(len(values), rank))


def median_lower_bound(values: Sequence[float], level: float = 0.95) -> Interval:
    """One-sided lower bound of the median from order statistics; the upper end is infinity.

    Example:
        >>> median_lower_bound([1.0, 2.0, 3.0, 4.0, 5.0])
        Interval(low=1.0, high=inf, confidence=0.96875)
    """
    rank = _rank(len(values), 1 - level)
    return Interval(sorted(values)[rank - 1], math.inf, 1 - _below(len(values), rank))


def ratio_of_medians_interval(
    ours: Sequence[float], theirs: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of ``median(ours) / median(theirs)``, each side resampled by itself.

    For sides that are not paired, such as times to a target under different settings. With very few values on
    a side it is too narrow, as every bootstrap is; the values themselves are always reported beside it.
    """
    _check_some(ours)
    _check_some(theirs)
    draw = random.Random(seed)
    ratios = sorted(
        statistics.median(draw.choices(ours, k=len(ours)))
        / statistics.median(draw.choices(theirs, k=len(theirs)))
        for _ in range(draws)
    )
    tail = (1 - level) / 2
    return Interval(
        ratios[math.floor(tail * (draws - 1))], ratios[math.ceil((1 - tail) * (draws - 1))], level
    )


def mean_interval(differences: Sequence[float], level: float = 0.95) -> Interval:
    """Two-sided Student interval of the mean, for paired differences.

    Raises:
        ValueError: fewer than two values.
    """
    if len(differences) < 2:
        raise ValueError(f"an interval of the mean needs two values or more, got {len(differences)}")
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    half = student_quantile(0.5 + level / 2, len(differences) - 1) * error
    return Interval(mean - half, mean + half, level)


def student_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t stays below with this probability, which must be at least 1/2.

    Example:
        >>> round(student_quantile(0.975, 4), 3)
        2.776
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"need 0.5 <= probability < 1 and freedom >= 1, got {probability} and {freedom}")
    # With t = sqrt(freedom) * tan(angle) the density becomes cos(angle)**(freedom - 1), smooth on a finite
    # range.
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if 0.5 + scale * _simpson_cosine(middle, freedom - 1) < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _simpson_cosine(end: float, power: int, pieces: int = 400) -> float:
    """Integral of ``cos(x)**power`` from 0 to ``end``."""
    width = end / pieces
    inner = sum((4 if i % 2 else 2) * math.cos(i * width) ** power for i in range(1, pieces))
    return width / 3 * (1 + inner + math.cos(end) ** power)


def _rank(count: int, tail: float) -> int:
    """The highest rank k >= 1 with ``P(Binomial(count, 1/2) < k) <= tail``; 1 if there is none."""
    if count < 1:
        raise ValueError("there is nothing to summarise: no values were measured")
    rank = 1
    while rank < (count + 1) // 2 and _below(count, rank + 1) <= tail:
        rank += 1
    return rank


def _below(count: int, rank: int) -> float:
    return float(sum(math.comb(count, i) for i in range(rank)) / 2**count)


def _check_some(values: Sequence[float]) -> None:
    if not values:
        raise ValueError("there is nothing to summarise: no values were measured")

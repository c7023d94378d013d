"""Metrics by name: which way is better, and what a target on one looks like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

Target = tuple[str, float] | tuple[str, float, Literal["min", "max"]]
"""A metric, the value to reach, and, where the name does not tell, whether it is minimized or maximized."""

_ANYWHERE = re.compile("loss|error|perplexity|bits_per")
_AT_THE_END = ("mse", "mae", "nll")  # of a word: rmse, nrmse, too
_ALONE = {"wer", "cer"}  # as words only: "answered" and "cancer" are not meant


def smaller_is_better(metric: str, target: Sequence[Any] | None = None) -> bool:
    """Whether a metric is a cost, from its name, or from a target that says so.

    Args:
        metric: its name. Small and capital letters are the same; whatever is no letter parts words.
        target: one on this metric that ends in "min" or "max" decides; others count for nothing.

    Example:
        >>> [smaller_is_better(name) for name in ("Loss", "val_mse", "WER", "accuracy", "answers")]
        [True, True, True, False, False]
        >>> smaller_is_better("latency", ("latency", 0.5, "min"))
        True
    """
    if target is not None and target[0] == metric and len(target) > 2:
        return bool(target[2] == "min")
    words = re.findall("[a-z]+", metric.lower())
    return bool(_ANYWHERE.search("_".join(words))) or any(
        word in _ALONE or word.endswith(_AT_THE_END) for word in words
    )

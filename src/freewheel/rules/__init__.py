"""What happens to an update before and when it changes the weights.

    base.py        Rule, chain: a pair of functions (init, apply), and several in order
    kernels.py     one call over all weights: fused, or foreach
    descent.py     sgd, adagrad, rmsprop, adam, adamw, frozen: the rules that write the weights
    guard.py       finite, clip, clip_value: what keeps harmful updates from them
    quarantine.py  reject_outliers, quarantine: what keeps workers that go wrong from them
    staleness.py   damp, expire, delay_compensate, delayed_nesterov, momentum_under_staleness
    aggregation.py average, accumulate: several updates become one
    robust.py      median, trimmed_mean, krum: the same, though some of them may be arbitrary
    compression.py top_k, half, eight_bit: what a worker does before it pushes, to send fewer bytes
    partition.py   partition: different rules for different parameters
    arguments.py   what the rules share: checks, descriptions, the entries with a gradient

Example:
    >>> from freewheel.rules import adamw, chain, clip, partition
    >>> no_decay_on_biases = partition({"*.bias": adamw(1e-3, weight_decay=0.0), "*": adamw(1e-3)})
    >>> chain(clip(1.0), no_decay_on_biases).scope
    'update'
"""

from freewheel.rules.aggregation import accumulate, average
from freewheel.rules.base import Rule, RuleContext, Span, State, chain, select, stateless
from freewheel.rules.compression import eight_bit, half, top_k
from freewheel.rules.descent import adagrad, adam, adamw, frozen, rmsprop, sgd
from freewheel.rules.guard import clip, clip_value, finite
from freewheel.rules.partition import partition
from freewheel.rules.quarantine import quarantine, reject_outliers
from freewheel.rules.robust import krum, median, trimmed_mean
from freewheel.rules.staleness import (
    damp,
    delay_compensate,
    delayed_nesterov,
    expire,
    momentum_under_staleness,
)

__all__ = [
    "Rule",
    "RuleContext",
    "Span",
    "State",
    "accumulate",
    "adagrad",
    "adam",
    "adamw",
    "average",
    "chain",
    "clip",
    "clip_value",
    "damp",
    "delay_compensate",
    "delayed_nesterov",
    "eight_bit",
    "expire",
    "finite",
    "frozen",
    "half",
    "krum",
    "median",
    "momentum_under_staleness",
    "partition",
    "quarantine",
    "reject_outliers",
    "rmsprop",
    "select",
    "sgd",
    "stateless",
    "top_k",
    "trimmed_mean",
]

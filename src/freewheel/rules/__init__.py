"""What happens to an update before and when it changes the weights.

    base.py        Rule, chain: a pair of functions (init, apply), and several in order
    kernels.py     one call over all weights: fused, or foreach
    descent.py     sgd, adagrad, rmsprop, adam, adamw, frozen: the rules that write the weights
    guard.py       finite, clip, clip_value: what keeps harmful updates from them
    partition.py   partition: different rules for different parameters

Example:
    >>> from freewheel.rules import adamw, chain, clip, partition
    >>> no_decay_on_biases = partition({"*.bias": adamw(1e-3, weight_decay=0.0), "*": adamw(1e-3)})
    >>> chain(clip(1.0), no_decay_on_biases).scope
    'update'
"""

from freewheel.rules.base import Rule, RuleContext, Span, State, chain, select, stateless
from freewheel.rules.descent import adagrad, adam, adamw, frozen, rmsprop, sgd
from freewheel.rules.guard import clip, clip_value, finite
from freewheel.rules.partition import partition

__all__ = [
    "Rule",
    "RuleContext",
    "Span",
    "State",
    "adagrad",
    "adam",
    "adamw",
    "chain",
    "clip",
    "clip_value",
    "finite",
    "frozen",
    "partition",
    "rmsprop",
    "select",
    "sgd",
    "stateless",
]

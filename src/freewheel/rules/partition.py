"""Parameter groups: different descents for different parts of a network."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from freewheel.errors import ConfigurationError
from freewheel.rules.base import Rule, RuleContext, Span, State, select
from freewheel.update import WHOLE, Update

Group = tuple[str, tuple[int, ...]]
"""The group's key in the state, and the positions of its entries in the span."""


def partition(groups: Mapping[str, Rule]) -> Rule:
    """Sends every entry to the rule of the first pattern that matches its name.

    What ``torch.optim`` calls parameter groups: no decay on biases, another rate for the head, a frozen
    trunk.

    Args:
        groups: pattern (``*``, ``?``, ``[abc]``; case counts) -> descent, or a chain that ends in one. The
            order decides: put ``"*"`` last.

    Raises:
        ConfigurationError: no groups, a rule that writes no weights or needs whole updates; and when the
            state is made, entries that no pattern matches.

    Example:
        >>> from freewheel.rules import partition, sgd
        >>> partition({"*.bias": sgd(0.1), "*": sgd(0.1, weight_decay=1e-4)}).describe
        "partition({'*.bias': sgd(lr=0.1), '*': sgd(lr=0.1, weight_decay=0.0001)})"
    """
    _check(groups)
    patterns = tuple(groups)
    rules = {str(position): rule for position, rule in enumerate(groups.values())}

    def init(span: Span) -> State:
        state: State = {key: {} for key in rules}
        for key, positions in _assign(patterns, span.names):
            part = Span(tuple(span.names[i] for i in positions), [span.weights[i] for i in positions])
            state[key] = _spread(rules[key].init(part), positions, len(span.names))
        return state

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        assigned = _assign(patterns, context.names)
        if len(assigned) == 1:
            key = assigned[0][0]
            return rules[key].apply(update, state[key], context)
        return _apply_groups(assigned, rules, update, state, context)

    described = ", ".join(f"{pattern!r}: {rule.describe}" for pattern, rule in groups.items())
    return Rule("piece", init, apply, f"partition({{{described}}})", descends=True)


def _apply_groups(
    assigned: tuple[Group, ...], rules: dict[str, Rule], update: Update, state: State, context: RuleContext
) -> Update | None:
    """Each group's rule on its part; None only if every group dropped or absorbed its own.

    Update and context belong to this worker alone, so they are lent to the groups with other contents:
    cheaper than copies, and fields that are added to them later are passed on.
    """
    whole = update.gradients, update.entries, context.names, context.weights
    gradients, entries, names, weights = whole
    passed = False
    try:
        for key, positions in assigned:
            update.gradients = [gradients[i] for i in positions]
            update.entries = positions if entries == WHOLE else tuple([entries[i] for i in positions])
            context.names = tuple([names[i] for i in positions])
            context.weights = None if weights is None else [weights[i] for i in positions]
            passed |= rules[key].apply(update, select(state[key], positions), context) is not None
    finally:
        update.gradients, update.entries, context.names, context.weights = whole
    if not passed:
        return None
    context.verdict = "applied"
    return update


@lru_cache(
    maxsize=1024
)  # in the module, not in the rule: a cached closure could not be sent to another process
def _assign(patterns: tuple[str, ...], names: tuple[str, ...]) -> tuple[Group, ...]:
    """Which group looks after which entries; groups without entries are left out."""
    chosen = [next((g for g, p in enumerate(patterns) if fnmatchcase(name, p)), None) for name in names]
    if None in chosen:
        unmatched = [name for name, group in zip(names, chosen, strict=True) if group is None]
        shown = ", ".join(unmatched[:5]) + (f" and {len(unmatched) - 5} more" if len(unmatched) > 5 else "")
        raise ConfigurationError(
            f'`groups` has no pattern for {shown}; got {", ".join(map(repr, patterns))}; add "*" at the end'
        )
    groups = range(len(patterns))
    parts = [(str(g), tuple(i for i, group in enumerate(chosen) if group == g)) for g in groups]
    return tuple(part for part in parts if part[1])


def _spread(state: State, positions: tuple[int, ...], size: int) -> State:
    """A group's state with its leaves aligned to the whole span: None for the entries of other groups."""

    def spread(leaf: list[Any]) -> list[Any]:
        aligned: list[Any] = [None] * size
        for position, value in zip(positions, leaf, strict=True):
            aligned[position] = value
        return aligned

    return {
        name: _spread(value, positions, size) if isinstance(value, dict) else spread(value)
        for name, value in state.items()
    }


def _check(groups: Mapping[str, Rule]) -> None:
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigurationError(
            f'`groups` must map patterns to rules, such as {{"*": sgd(0.1)}}, got {groups!r}'
        )
    for pattern, rule in groups.items():
        if not isinstance(pattern, str) or not isinstance(rule, Rule):
            raise ConfigurationError(f"`groups` must map patterns to rules, got {pattern!r}: {rule!r}")
        if not rule.descends:
            raise ConfigurationError(
                f"the rule of {pattern!r} must write the weights, got {rule.describe}; end it with a descent:"
                " chain(..., sgd(lr)), or use frozen()"
            )
        if rule.scope == "update":
            raise ConfigurationError(
                f"the rule of {pattern!r} needs whole updates, got {rule.describe}; put what needs them"
                " before the partition: chain(clip(1.0), partition({...}))"
            )

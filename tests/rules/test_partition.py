from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn

from freewheel import rules
from freewheel.errors import ConfigurationError
from freewheel.rules import (
    Rule,
    RuleContext,
    Span,
    State,
    adam,
    chain,
    clip,
    clip_value,
    finite,
    frozen,
    partition,
    rmsprop,
    select,
    sgd,
)
from freewheel.update import Update

NAMES = ("conv.weight", "conv.bias", "norm.weight", "norm.bias", "head.weight", "head.bias")


def module() -> nn.Module:
    torch.manual_seed(1)
    parts = {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4), "head": nn.Linear(4, 3)}
    return nn.ModuleDict(parts).double()


def weights_of(network: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in network.parameters()]


def batch(weights: list[Tensor], step: int) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(step)
    draws = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    return [None if (step + i) % 5 == 0 else g for i, g in enumerate(draws)]


def started(rule: Rule, weights: list[Tensor]) -> tuple[State, RuleContext]:
    return rule.init(Span(NAMES, weights)), RuleContext(names=NAMES, weights=weights)


GROUPED = {
    "head.*": sgd(0.5),
    "*.bias": sgd(0.1, momentum=0.9),
    "*": sgd(0.1, momentum=0.9, weight_decay=0.1),
}


def test_groups_equal_the_parameter_groups_of_torch_optim() -> None:
    ours, theirs = module(), module()
    assert tuple(name for name, _ in ours.named_parameters()) == NAMES
    named = dict(theirs.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [named["head.weight"], named["head.bias"]], "lr": 0.5, "momentum": 0.0},
        {"params": [named["conv.bias"], named["norm.bias"]]},
        {"params": [named["conv.weight"], named["norm.weight"]], "weight_decay": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    rule, weights = partition(GROUPED), weights_of(ours)
    state, context = started(rule, weights)
    for step in range(30):
        gradients = batch(weights, step)
        for parameter, gradient in zip(named.values(), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
        rule.apply(Update(gradients), state, context)
        torch.testing.assert_close(weights, weights_of(theirs), rtol=1e-12, atol=1e-12)
    assert context.verdict == "applied"


MIXED = {"head.*": adam(0.01), "norm.*": chain(clip_value(0.1), rmsprop(0.01, momentum=0.5)), "*": sgd(0.1)}


def test_pieces_of_a_partition_equal_the_whole() -> None:
    rule, whole, pieces = partition(MIXED), weights_of(module()), weights_of(module())
    state, context = started(rule, whole)
    parts, single = started(rule, pieces)
    for step in range(10):
        rule.apply(Update(batch(whole, step)), state, context)
        gradients = batch(pieces, step)
        for entries in ((5,), (1, 4), (0, 2, 3)):
            single.names = tuple(NAMES[i] for i in entries)
            single.weights = [pieces[i] for i in entries]
            update = Update([gradients[i] for i in entries], entries=entries)
            rule.apply(update, select(parts, entries), single)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


def test_state_is_aligned_with_the_span_and_empty_for_entries_of_other_groups() -> None:
    state, _ = started(partition(MIXED), weights_of(module()))
    present = {
        "head": [leaf is not None for leaf in state["0"]["mean"]],
        "norm": [leaf is not None for leaf in state["1"]["1"]["square"]],
    }
    assert present == {"head": [False] * 4 + [True] * 2, "norm": [False, False, True, True, False, False]}
    assert state["2"] == {}


def test_the_first_pattern_that_matches_wins_and_case_counts() -> None:
    weights = weights_of(module())
    before = [weight.clone() for weight in weights]
    rule = partition({"HEAD.*": sgd(1.0), "head.*": frozen(), "head.bias": sgd(1.0), "*": sgd(1.0)})
    state, context = started(rule, weights)
    rule.apply(Update([torch.ones_like(weight) for weight in weights]), state, context)
    moved = [not torch.equal(old, new) for old, new in zip(before, weights, strict=True)]
    assert moved == [True, True, True, True, False, False]


def test_update_and_context_come_back_as_they_were() -> None:
    rule, weights = partition(MIXED), weights_of(module())
    state, context = started(rule, weights)
    gradients = batch(weights, 1)
    update = Update(gradients)
    assert rule.apply(update, state, context) is update
    assert update.gradients is gradients
    assert update.entries == ()
    assert context.names is NAMES
    assert context.weights is weights


def seen(record: list[Any], returns: bool = True) -> Rule:
    """A descent that writes down what it was given."""

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        record.append(
            (context.names, update.entries, len(update.gradients), context.samples, context.staleness)
        )
        if returns:
            return update
        context.verdict = "refused"
        return None

    return Rule("piece", rules.stateless, apply, "seen()", descends=True)


def test_groups_see_their_entries_and_the_whole_context() -> None:
    record: list[Any] = []
    weights = weights_of(module())
    rule = partition({"*.bias": seen(record), "*": seen(record)})
    state, context = started(rule, weights)
    context.samples, context.staleness = 640, 3
    rule.apply(Update(batch(weights, 0)), state, context)
    entries = (0, 1, 5)
    context.names, context.weights = tuple(NAMES[i] for i in entries), [weights[i] for i in entries]
    rule.apply(Update([torch.ones(())] * 3, entries=entries), select(state, entries), context)
    assert record == [
        (NAMES[1::2], (1, 3, 5), 3, 640, 3),
        (NAMES[::2], (0, 2, 4), 3, 640, 3),
        (("conv.bias", "head.bias"), (1, 5), 2, 640, 3),
        (("conv.weight",), (0,), 1, 640, 3),
    ]


def test_an_update_counts_as_dropped_only_if_every_group_dropped_it() -> None:
    weights = weights_of(module())
    some = partition({"*.bias": seen([], returns=False), "*": frozen()})
    state, context = started(some, weights)
    assert some.apply(Update(batch(weights, 0)), state, context) is not None
    assert context.verdict == "applied"
    none = partition({"*.bias": seen([], returns=False), "*": seen([], returns=False)})
    assert none.apply(Update(batch(weights, 0)), state, context) is None
    assert context.verdict == "refused"


def test_an_error_in_a_group_leaves_update_and_context_whole() -> None:
    weights = weights_of(module())
    rule = partition({"*.bias": sgd(lambda samples: math.nan), "*": sgd(0.1)})
    state, context = started(rule, weights)
    with pytest.raises(ConfigurationError, match="nan"):
        rule.apply(Update(batch(weights, 0)), state, context)
    assert context.names is NAMES
    assert context.weights is weights


def test_a_partition_ends_a_chain_and_nests() -> None:
    inner = partition({"*.bias": sgd(0.2), "*": sgd(0.1)})
    rule = chain(clip(1.0), partition({"head.*": inner, "*": frozen()}))
    weights = weights_of(module())
    before = [weight.clone() for weight in weights]
    state, context = started(rule, weights)
    rule.apply(Update([torch.full_like(weight, 1e-6) for weight in weights]), state, context)
    assert all(torch.equal(old, new) for old, new in zip(before[:4], weights[:4], strict=True))
    torch.testing.assert_close(weights[4], before[4] - 1e-7, rtol=0, atol=1e-15)
    torch.testing.assert_close(weights[5], before[5] - 2e-7, rtol=0, atol=1e-15)
    assert (rule.scope, rule.descends) == ("update", True)


def test_a_partition_can_be_sent_to_another_process() -> None:
    here, there = weights_of(module()), weights_of(module())
    other: Rule = pickle.loads(cloudpickle.dumps(partition(MIXED)))
    for rule, weights in ((partition(MIXED), here), (other, there)):
        state, context = started(rule, weights)
        rule.apply(Update(batch(weights, 0)), state, context)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_entries_that_no_pattern_matches_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no pattern for conv\.weight, norm\.weight.*add \"\*\""):
        started(partition({"*.bias": sgd(0.1), "head.*": sgd(0.1)}), weights_of(module()))
    with pytest.raises(ConfigurationError, match="and 1 more"):
        started(partition({"tail.*": sgd(0.1)}), weights_of(module()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: partition({}), r"`groups` must map patterns to rules, such as"),
        (lambda: partition([("*", sgd(0.1))]), r"`groups` must map"),  # type: ignore[arg-type]
        (lambda: partition({"*": 0.1}), r"got '\*': 0\.1"),  # type: ignore[dict-item]
        (lambda: partition({"*": clip_value(1.0)}), r"'\*' must write the weights.*frozen\(\)"),
        (lambda: partition({"*": chain(finite(), sgd(0.1))}), r"needs whole updates, got finite\(\) > sgd"),
    ],
)
def test_groups_are_checked(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

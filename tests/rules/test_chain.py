from __future__ import annotations

import pytest
import torch

from freewheel.errors import ConfigurationError
from freewheel.rules import RuleContext, Span, chain, clip, clip_value, finite, select, sgd
from freewheel.update import Update


def test_rules_are_applied_in_order() -> None:
    weights = [torch.zeros(2)]
    for rule, expected in (
        (chain(clip_value(3.0), clip(1.0), sgd(1.0)), [-0.6, -0.8]),
        (chain(clip(1.0), clip_value(0.7), sgd(1.0)), [-0.6, -0.7]),
    ):
        weights[0].zero_()
        context = RuleContext(("w",), weights)
        gradient = torch.tensor([2.25, 3.0]) if expected[1] == -0.8 else torch.tensor([3.0, 4.0])
        rule.apply(Update([gradient]), rule.init(Span(("w",), weights)), context)
        torch.testing.assert_close(weights[0], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_chain_needs_the_whole_update_if_one_of_its_rules_does() -> None:
    assert chain(clip_value(1.0), sgd(0.1)).scope == "piece"
    assert chain(clip_value(1.0), finite(), sgd(0.1)).scope == "update"


def test_a_chain_descends_if_its_last_rule_does() -> None:
    assert chain(clip(1.0), sgd(0.1)).descends
    assert not chain(clip(1.0), clip_value(1.0)).descends


def test_a_chain_of_one_is_that_rule() -> None:
    rule = sgd(0.1)
    assert chain(rule) is rule


def test_chains_refuse_nothing_and_a_descent_before_the_end() -> None:
    with pytest.raises(ConfigurationError, match="at least one rule"):
        chain()
    with pytest.raises(ConfigurationError, match=r"last of a chain, got sgd\(lr=0\.1\) > finite\(\)"):
        chain(sgd(0.1), finite())


def test_selected_state_shares_its_tensors() -> None:
    weights = [torch.zeros(2), torch.zeros(3)]
    state = chain(clip(1.0), sgd(0.1, momentum=0.9)).init(Span(("a", "b"), weights))
    part = select(state, [1])
    assert part == {"0": {}, "1": {"momentum": [state["1"]["momentum"][1]]}}
    assert part["1"]["momentum"][0] is state["1"]["momentum"][1]

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.rules import Rule, RuleContext, Span, chain, clip, clip_value, finite, sgd
from freewheel.update import Update

BAD = [math.nan, math.inf, -math.inf]
LARGEST = 3.4e38  # the largest float32; its square overflows


def gradients(scale: float = 1.0) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 3, 3, 3), (4,), (2, 8)]
    first, second, third = [scale * torch.randn(shape, generator=generator) for shape in shapes]
    return [first.to(memory_format=torch.channels_last), second, None, third]


def tensors(values: list[Tensor | None]) -> list[Tensor]:
    return [value for value in values if value is not None]


def apply(rule: Rule, values: list[Tensor | None]) -> tuple[Update | None, str]:
    context = RuleContext()
    return rule.apply(Update(values), rule.init(Span((), [])), context), context.verdict


@pytest.mark.parametrize(
    "rule", [finite(), finite(scope="piece"), clip(1.0)], ids=lambda rule: str(rule.describe)
)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("entry", [0, 1, 3])
def test_an_update_with_one_bad_number_is_dropped_by_name(rule: Rule, bad: float, entry: int) -> None:
    values = gradients()
    gradient = tensors([values[entry]])[0]
    gradient[(-1,) * gradient.dim()] = bad
    assert apply(rule, values) == (None, "non-finite")


@pytest.mark.parametrize(
    "rule", [finite(), clip(1e30), clip_value(1e30)], ids=lambda rule: str(rule.describe)
)
@pytest.mark.parametrize("values", [[], [None, None]])
def test_an_update_without_gradients_passes(rule: Rule, values: list[Tensor | None]) -> None:
    update, verdict = apply(rule, values)
    assert update is not None
    assert verdict == "applied"


def test_finite_hands_on_good_updates_as_they_are() -> None:
    update, verdict = apply(finite(), gradients())
    assert update is not None
    assert verdict == "applied"
    torch.testing.assert_close(update.gradients, gradients(), rtol=0, atol=0)


def test_finite_keeps_numbers_whose_squares_overflow() -> None:
    values: list[Tensor | None] = [torch.full((1000,), LARGEST), torch.tensor([-LARGEST, 0.0])]
    assert apply(finite(), values)[1] == "applied"


def test_finite_needs_the_whole_update_unless_told_otherwise() -> None:
    assert (finite().scope, finite(scope="piece").scope) == ("update", "piece")
    assert (clip(1.0).scope, clip_value(1.0).scope) == ("update", "piece")


def test_a_dropped_update_leaves_the_weights_and_their_state_alone() -> None:
    weights = [torch.ones(2), torch.ones(3)]
    rule = chain(finite(), sgd(0.1, momentum=0.9))
    state, context = rule.init(Span(("a", "b"), weights)), RuleContext(("a", "b"), weights)
    assert rule.apply(Update([torch.tensor([1.0, math.nan]), torch.ones(3)]), state, context) is None
    assert context.verdict == "non-finite"
    torch.testing.assert_close(weights, [torch.ones(2), torch.ones(3)])
    torch.testing.assert_close(state["1"]["momentum"], [torch.zeros(2), torch.zeros(3)])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("max_norm", [0.1, 5.0, 1e4])
def test_clip_equals_torch(scale: float, max_norm: float) -> None:
    update, verdict = apply(clip(max_norm), gradients(scale))
    assert update is not None
    assert verdict == "applied"
    parameters = [torch.nn.Parameter(torch.zeros_like(value)) for value in tensors(gradients(scale))]
    for parameter, gradient in zip(parameters, tensors(gradients(scale)), strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    torch.testing.assert_close(tensors(update.gradients), [p.grad for p in parameters], rtol=1e-6, atol=0)
    assert update.gradients[2] is None


def test_clip_scales_numbers_whose_squares_overflow() -> None:
    update, _ = apply(clip(3.0), [torch.full((9,), LARGEST)])
    assert update is not None
    torch.testing.assert_close(update.gradients, [torch.ones(9)])


def test_clip_keeps_direction_and_strides() -> None:
    before = gradients()
    update, _ = apply(clip(1e-2), gradients())
    assert update is not None
    for old, new in zip(tensors(before), tensors(update.gradients), strict=True):
        assert new.stride() == old.stride()
        assert torch.cosine_similarity(old.flatten(), new.flatten(), dim=0).item() == pytest.approx(1.0)


def test_clip_value_equals_torch() -> None:
    update, _ = apply(clip_value(0.5), gradients())
    assert update is not None
    parameters = [torch.nn.Parameter(torch.zeros_like(value)) for value in tensors(gradients())]
    for parameter, gradient in zip(parameters, tensors(gradients()), strict=True):
        parameter.grad = gradient
    torch.nn.utils.clip_grad_value_(parameters, 0.5)
    torch.testing.assert_close(tensors(update.gradients), [p.grad for p in parameters], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip(0), r"`max_norm` must be > 0, got 0"),
        (lambda: clip(-1), r"`max_norm` .* got -1"),
        (lambda: clip(math.inf), r"`max_norm` .* got inf; .* leave the rule out for no limit"),
        (lambda: clip_value(0.0), r"`limit` must be > 0"),
        (lambda: clip_value(math.nan), r"`limit` .* got nan"),
        (lambda: finite(scope="entry"), r"`scope` must be 'update' or 'piece', got 'entry'"),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_guards_are_checked(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor

from freewheel import rules
from freewheel.errors import ConfigurationError
from freewheel.rules import Rule, RuleContext, Span, State, chain, eight_bit, finite, half, select, sgd, top_k
from freewheel.update import Update

SHAPES = [(4, 3, 3, 3), (7,), ()]
NAMES = tuple(f"entry{i}" for i in range(len(SHAPES)))
ALL = [top_k(0.1), top_k(0.1, error_feedback=False), half(), eight_bit(), eight_bit(block=5)]
everyone = pytest.mark.parametrize("rule", ALL, ids=lambda rule: str(rule.describe))


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, *rest = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [first.to(memory_format=torch.channels_last), *rest]


def started(rule: Rule) -> tuple[State, RuleContext]:
    weights = [torch.zeros_like(value) for value in draw(0)]
    return rule.init(Span(NAMES, weights)), RuleContext(NAMES, weights, generator=seeded())


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def compressed(rule: Rule, values: list[Tensor], seed: int = 5) -> list[Tensor]:
    state, context = started(rule)
    context.generator = seeded(seed)
    return sent(rule.apply(Update(list(values)), state, context))


def sent(update: Update | None) -> list[Tensor]:
    assert update is not None
    return [gradient for gradient in update.gradients if gradient is not None]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_top_k_keeps_the_largest_of_every_entry(share: float) -> None:
    for gradient, kept in zip(draw(1), compressed(top_k(share), draw(1)), strict=True):
        flat = gradient.flatten().numpy()
        count = max(1, round(share * flat.size))
        expected = np.zeros_like(flat)
        order = np.argsort(-np.abs(flat))[:count]
        expected[order] = flat[order]
        np.testing.assert_array_equal(kept.flatten().numpy(), expected)


def test_error_feedback_conserves_the_sum() -> None:
    rule = top_k(0.05)
    state, context = started(rule)
    total = [torch.zeros_like(value, dtype=torch.float64) for value in draw(0)]
    for step in range(50):
        gradients: list[Tensor | None] = [
            None if (step + i) % 4 == 0 else g for i, g in enumerate(draw(step))
        ]
        update = Update(list(gradients))
        assert rule.apply(update, state, context) is update
        for i, (came, went) in enumerate(zip(gradients, update.gradients, strict=True)):
            assert (came is None) is (went is None)
            if came is not None and went is not None:
                total[i] += came.double() - went.double()
    # float32 sums: equal up to rounding of what is kept back
    torch.testing.assert_close([r.double() for r in state["residual"]], total, rtol=0, atol=1e-5)
    assert all(
        residual.stride() == value.stride()
        for residual, value in zip(state["residual"], draw(0), strict=True)
    )


def test_error_feedback_equals_the_papers_pseudo_code() -> None:
    # Stich et al. 2018, algorithm 1, for one entry: p = m + g, send the top of p, m = p - sent
    rule, memory = top_k(0.3), np.zeros(7, dtype=np.float32)
    state, context = started(rule)
    for step in range(20):
        came = draw(step)
        update = rule.apply(Update(list(came)), state, context)
        position = memory + came[1].numpy()
        expected = np.where(np.abs(position) >= np.sort(np.abs(position))[-2], position, 0)
        memory = position - expected
        np.testing.assert_array_equal(sent(update)[1].numpy(), expected)


def test_everything_is_sent_in_the_end_with_error_feedback_only() -> None:
    constant = torch.tensor([1.0, 0.3, 0.1, 0.02, 0.01, 0.005, 0.001])
    means = []
    for rule in (top_k(0.2), top_k(0.2, error_feedback=False)):
        state, context = started(rule)
        steps = [
            sent(rule.apply(Update([None, constant.clone(), None]), state, context))[0] for _ in range(2000)
        ]
        means.append(torch.stack(steps).mean(0))
    torch.testing.assert_close(means[0], constant, rtol=0, atol=2e-3)
    torch.testing.assert_close(means[1], torch.where(constant == 1, constant, 0.0))


def test_half_is_float16_that_saturates() -> None:
    values = torch.tensor(
        [1.0, 1 / 3, 7e4, -1e30, 65504.0, 65519.0, 1e-9, -0.0, math.inf, -math.inf, math.nan]
    )
    result = compressed(half(), [values])[0]
    with np.errstate(over="ignore"):
        expected = values.numpy().astype(np.float16).astype(np.float32)
    expected[2:4] = 65504, -65504
    np.testing.assert_array_equal(result.numpy(), expected)


@pytest.mark.parametrize("rule", [eight_bit(), eight_bit(block=5), eight_bit(block=1)])
def test_eight_bit_rounds_to_a_neighbouring_level(rule: Rule) -> None:
    block = int(rule.describe.partition("block=")[2].rstrip(")") or 256)
    for gradient, result in zip(draw(2), compressed(rule, draw(2)), strict=True):
        flat, decoded = gradient.flatten().numpy().astype(np.float64), result.flatten().numpy()
        for start in range(0, flat.size, block):
            part = flat[start : start + block]
            scale = np.abs(part).max() / 127
            levels = decoded[start : start + block] / scale
            np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
            assert (np.abs(levels - part / scale) < 1 + 1e-4).all()
            assert np.abs(levels).max() == pytest.approx(127)
    # the largest is exact: one number a block loses nothing
    if block == 1:
        torch.testing.assert_close(compressed(rule, draw(2)), draw(2), rtol=1e-6, atol=0)


def test_stochastic_rounding_is_unbiased() -> None:
    # 20,000 draws: the standard error of the mean is below 0.5 / sqrt(20000) levels; 5 of them, fixed seed
    values = torch.tensor([127.0, 0.5, 0.1, -0.1, -0.9, 3.999, -126.5])
    rule, draws = eight_bit(block=7), 20_000
    context = RuleContext(generator=seeded())
    rows = values.repeat(draws)
    result = sent(rule.apply(Update([rows]), {}, context))[0].view(draws, 7)
    bound = 5 * 0.5 / math.sqrt(draws)
    torch.testing.assert_close(result.mean(0), values, rtol=0, atol=bound)
    assert set(result[:, 1].tolist()) == {0.0, 1.0}
    # rounding to the nearest would be off by more than that
    assert (values.round() - values).abs().max() > 10 * bound


def test_rounding_is_drawn_from_the_generator_of_the_context() -> None:
    one, again, other = [compressed(eight_bit(), draw(0), seed) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0], other[0])
    with pytest.raises(ConfigurationError, match=r"`context\.generator` is None, but eight_bit\(\) draws"):
        eight_bit().apply(Update([torch.ones(1)]), {}, RuleContext())


def test_a_block_of_zeros_stays_zero() -> None:
    assert not compressed(eight_bit(), [torch.zeros(1000)])[0].any()


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (top_k(0.1), (11 + 1 + 1) * 8),
        (half(), (108 + 7 + 1) * 2),
        (eight_bit(), 108 + 7 + 1 + 4 * 3),
        (eight_bit(block=5), 108 + 7 + 1 + 4 * (22 + 2 + 1)),
    ],
    ids=lambda value: value.describe if isinstance(value, Rule) else "",
)
def test_bytes_are_counted(rule: Rule, count: int) -> None:
    state, context = started(rule)
    update = Update(list(draw(0)))
    rule.apply(update, state, context)
    assert update.wire_bytes == count
    unused = Update([None, None, None])
    assert rule.apply(unused, state, context) is unused
    assert (unused.gradients, unused.wire_bytes) == ([None] * 3, 0)


@everyone
def test_what_came_is_left_alone_and_what_goes_has_the_same_form(rule: Rule) -> None:
    state, context = started(rule)
    shared = draw(0)[1]
    expanded = torch.ones(()).expand(4, 3, 3, 3)  # autograd hands over such, and one tensor for two weights
    update = Update([expanded, shared, None])
    rule.apply(update, state, context)
    assert torch.equal(shared, draw(0)[1])
    for gradient, value in zip(sent(update), (expanded, shared), strict=False):
        assert (gradient.shape, gradient.dtype) == (value.shape, value.dtype)
    for gradient, value in zip(compressed(rule, draw(0)), draw(0), strict=True):
        assert gradient.stride() == value.stride()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@everyone
def test_a_bad_number_arrives_as_one_and_leaves_no_trace(rule: Rule, bad: float) -> None:
    state, context = started(rule)
    rule.apply(Update(list(draw(0))), state, context)
    before = [residual.clone() for residual in state.get("residual", [])]
    values = draw(1)
    values[1][3] = bad
    update = rule.apply(Update(list(values)), state, context)
    assert update is not None
    assert finite().apply(update, {}, RuleContext()) is None
    torch.testing.assert_close(state.get("residual", []), before, rtol=0, atol=0)
    assert all(g.isfinite().all() for g in sent(rule.apply(Update(list(draw(2))), state, context)))


@everyone
def test_pieces_one_by_one_equal_the_whole(rule: Rule) -> None:
    state, context = started(rule)
    parts, single = started(rule)
    for step in range(5):
        whole = sent(rule.apply(Update(list(draw(step))), state, context))
        values, pieces = draw(step), []
        for i in range(3):
            pieces += sent(rule.apply(Update([values[i]], (i,)), select(parts, [i]), single))
        torch.testing.assert_close(whole, pieces, rtol=0, atol=0)
    torch.testing.assert_close(state, parts, rtol=0, atol=0)


@everyone
def test_an_update_is_compressed_once(rule: Rule) -> None:
    state, context = started(chain(rule, half()))
    with pytest.raises(
        ConfigurationError, match=r"compressed already, to \d+ bytes; give the worker one rule"
    ):
        chain(rule, half()).apply(Update(list(draw(0))), state, context)


def test_compression_does_not_descend_and_may_come_before_one() -> None:
    rule = chain(top_k(0.5), sgd(1.0))
    weights = [torch.zeros(4)]
    rule.apply(
        Update([torch.tensor([1.0, -3.0, 2.0, 0.5])]),
        rule.init(Span(("w",), weights)),
        RuleContext(("w",), weights),
    )
    assert weights[0].tolist() == [0.0, 3.0, -2.0, 0.0]
    assert (rule.scope, top_k(0.5).descends, top_k(0.5).exclusive) == ("piece", False, False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@everyone
def test_the_dtype_is_kept(rule: Rule, dtype: torch.dtype) -> None:
    weights = [torch.zeros(600, dtype=dtype)]
    values = torch.randn(600, generator=seeded()).to(dtype)
    state = rule.init(Span(("w",), weights))
    result = sent(rule.apply(Update([values]), state, RuleContext(("w",), weights, generator=seeded())))[0]
    assert result.dtype == dtype
    assert (result.double() - values.double()).abs().max() < values.double().abs().max()


@everyone
def test_the_description_is_the_call_and_the_rule_can_be_sent_to_another_process(rule: Rule) -> None:
    assert eval(rule.describe, vars(rules).copy()).describe == rule.describe
    other: Rule = pickle.loads(cloudpickle.dumps(rule))
    torch.testing.assert_close(compressed(other, draw(0)), compressed(rule, draw(0)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: top_k(0), r"`share` must be > 0, got 0; 0\.01 sends"),
        (lambda: top_k(-0.1), r"`share` .* got -0\.1"),
        (lambda: top_k(1.1), r"`share` .* <= 1, got 1\.1"),
        (lambda: top_k(math.nan), r"`share` .* got nan"),
        (lambda: eight_bit(block=0), r"`block` .* got 0; 256 adds 4 bytes"),
        (lambda: eight_bit(block=2.5), r"`block` .* got 2\.5"),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_are_named_with_a_remedy(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor

from freewheel import rules, schedules
from freewheel.errors import ConfigurationError
from freewheel.rules import (
    Rule,
    RuleContext,
    Span,
    State,
    chain,
    damp,
    delay_compensate,
    delayed_nesterov,
    expire,
    finite,
    momentum_under_staleness,
    select,
    sgd,
)
from freewheel.update import Update

SHAPES = [(3, 4), (5,), ()]
NAMES = tuple(f"entry{i}" for i in range(len(SHAPES)))


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def optional(values: list[Tensor]) -> list[Tensor | None]:
    return list(values)


def started(rule: Rule, weights: list[Tensor]) -> tuple[State, RuleContext]:
    return rule.init(Span(NAMES, weights)), RuleContext(NAMES, weights)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("staleness", [0, 1, 2, 7])
def test_a_damped_gradient_is_divided_by_a_power_of_its_staleness(power: float, staleness: int) -> None:
    context = RuleContext(staleness=staleness)
    gradients: list[Tensor | None] = [*draw(0), None]
    update = Update(gradients)
    assert damp(power).apply(update, {}, context) is update
    expected = [g / max(1, staleness) ** power for g in draw(0)]
    torch.testing.assert_close(update.gradients[:-1], expected, rtol=1e-14, atol=0)
    assert update.gradients[-1] is None


def test_damping_is_dividing_the_learning_rate() -> None:
    rule, ours, theirs = chain(finite(), damp(), sgd(0.1)), draw(1), draw(1)
    state, context = started(rule, ours)
    for step in range(6):
        context.staleness = step
        rule.apply(Update(optional(draw(10 + step))), state, context)
        for weight, gradient in zip(theirs, draw(10 + step), strict=True):
            weight.sub_(0.1 / max(1, step) * gradient)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_an_update_without_gradients_is_damped_to_itself() -> None:
    assert damp().apply(Update([None]), {}, RuleContext(staleness=5)) is not None


@pytest.mark.parametrize(("staleness", "verdict"), [(0, "applied"), (3, "applied"), (4, "expired")])
def test_updates_beyond_the_bound_expire(staleness: int, verdict: str) -> None:
    weights = draw(0)
    rule = chain(expire(3), sgd(1.0))
    state, context = started(rule, weights)
    context.staleness = staleness
    result = rule.apply(Update(optional(draw(1))), state, context)
    assert (result is None, context.verdict) == (verdict == "expired", verdict)
    assert torch.equal(weights[0], draw(0)[0]) == (verdict == "expired")
    assert expire(3).scope == "update"


@pytest.mark.parametrize("adaptive", [False, True])
def test_delay_compensation_equals_the_papers_pseudo_code(adaptive: bool) -> None:
    strength, decay, lr = 2.0, 0.8, 0.05
    settings = {"decay": decay} if adaptive else {}
    rule = chain(delay_compensate(strength, adaptive, **settings), sgd(lr))
    ours = draw(0)
    state, context = started(rule, ours)
    theirs = [weight.numpy().copy() for weight in draw(0)]
    squares = [np.zeros(shape) for shape in SHAPES]
    for step in range(12):
        pulled = draw(100 + step)
        rule.apply(Update(optional(draw(200 + step)), pulled=pulled), state, context)
        for i, (g, w_bak) in enumerate(zip(draw(200 + step), pulled, strict=True)):
            gradient, backup = g.numpy(), w_bak.numpy()
            squares[i] = decay * squares[i] + (1 - decay) * gradient**2
            factor = strength / np.sqrt(squares[i] + 1e-7) if adaptive else strength
            compensated = gradient + factor * gradient * gradient * (theirs[i] - backup)
            theirs[i] = theirs[i] - lr * compensated
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other, rtol=1e-11, atol=1e-11)
    assert (rule.needs_pulled, rule.scope) == (True, "piece")
    assert ("square" in state["0"]) is adaptive


def test_compensation_is_exact_where_the_hessian_is_the_square_of_the_gradient() -> None:
    # f(w) = -log w has f' = -1/w and f'' = 1/w^2 = f'^2: what is left is of second order in the delay
    errors = []
    for delay in (1e-2, 1e-3):
        old = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
        new = old + delay
        update = Update([-1 / old], pulled=[old])
        delay_compensate(1.0).apply(update, {}, RuleContext(("w",), [new]))
        gradient = update.gradients[0]
        assert gradient is not None
        errors.append((gradient + 1 / new).abs().max().item())
    assert math.log10(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("adaptive", [False, True])
def test_nothing_is_compensated_at_the_weights_that_were_pulled(adaptive: bool) -> None:
    weights, gradients = draw(0), [1e200 * g for g in draw(1)]  # their squares overflow
    rule = delay_compensate(0.04, adaptive)
    update = Update(optional([g.clone() for g in gradients]), pulled=draw(0))
    rule.apply(update, *started(rule, weights))
    torch.testing.assert_close(update.gradients, optional(gradients), rtol=0, atol=0)


def test_compensation_skips_entries_without_a_gradient_and_works_on_pieces() -> None:
    rule = delay_compensate(2.0, adaptive=True)
    whole, pieces, weights = draw(1), draw(1), draw(0)
    state, context = started(rule, weights)
    update = Update([None, *whole[1:]], pulled=draw(2))
    rule.apply(update, state, context)
    assert update.gradients[0] is None
    assert not state["square"][0].any()
    parts, _ = started(rule, weights)
    for i in (2, 1):
        piece = Update([pieces[i]], (i,), pulled=[draw(2)[i]])
        rule.apply(piece, select(parts, [i]), RuleContext((NAMES[i],), [weights[i]]))
    torch.testing.assert_close(whole[1:], pieces[1:], rtol=0, atol=0)
    torch.testing.assert_close(state, parts, rtol=0, atol=0)


def test_compensation_asks_for_the_pulled_weights_and_the_live_ones() -> None:
    rule = delay_compensate(0.04)
    with pytest.raises(ConfigurationError, match=r"`update\.pulled` is None.*compute on copies"):
        rule.apply(Update([torch.ones(1)]), {}, RuleContext(("w",), [torch.ones(1)]))
    with pytest.raises(ConfigurationError, match=r"`context\.weights` is None"):
        rule.apply(Update([torch.ones(1)], pulled=[torch.ones(1)]), {}, RuleContext())


def delayed(
    weights: list[Tensor], steps: int, lr: Callable[[int], float], beta: float, n: int, c: float
) -> None:
    """Algorithm 3 of Liu et al. 2024, line by line; `draw(step)` is the pseudo-gradient."""
    m = [torch.zeros_like(weight) for weight in weights]
    delta = [torch.zeros_like(weight) for weight in weights]
    for t in range(steps):
        for i, g in enumerate(draw(300 + t)):
            delta[i] = delta[i] + g
            if (t + 1) % n == 0:
                m[i] = beta * m[i] + delta[i] / n
                weights[i] -= lr(t) * ((1 - c * n + c) * beta * m[i] + g / n)
                delta[i] = torch.zeros_like(g)
            else:
                weights[i] -= lr(t) * (c * beta * m[i] + g / n)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_delayed_nesterov_equals_the_papers_pseudo_code(n: int, share: float, beta: float) -> None:
    ours, theirs = draw(0), draw(0)
    rule = delayed_nesterov(0.3, beta, buffer=n, activation=share / n)
    state, context = started(rule, ours)
    for step in range(11):
        update = Update(optional(draw(300 + step)))
        assert rule.apply(update, state, context) is update
    delayed(theirs, 11, lambda t: 0.3, beta, n, share / n)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_delayed_nesterov_takes_schedules() -> None:
    ours, theirs, plan = draw(0), draw(0), schedules.cosine(0.3)
    rule = delayed_nesterov(plan, buffer=3)
    state, context = started(rule, ours)
    context.planned = 800
    for step in range(8):
        context.samples = 100 * step
        rule.apply(Update(optional(draw(300 + step))), state, context)
    delayed(theirs, 8, lambda t: plan(100 * t, 800), 0.9, 3, 0.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_delayed_nesterov_without_delay_is_nesterov() -> None:
    ours, theirs = draw(0), draw(0)
    one, other = delayed_nesterov(0.1, 0.8, buffer=1), sgd(0.1, 0.8, nesterov=True)
    state, context = started(one, ours)
    their_state, their_context = started(other, theirs)
    for step in range(10):
        one.apply(Update(optional(draw(step))), state, context)
        other.apply(Update(optional(draw(step))), their_state, their_context)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_every_entry_of_delayed_nesterov_counts_its_own_updates() -> None:
    rule, whole, pieces = delayed_nesterov(0.1, buffer=2, activation=0.2), draw(0), draw(0)
    state, context = started(rule, whole)
    parts, _ = started(rule, pieces)
    for step in range(9):
        gradients = [None if (step + i) % 3 == 0 else g for i, g in enumerate(draw(step))]
        again = [None if g is None else g.clone() for g in gradients]
        rule.apply(Update(gradients), state, context)
        for i in (2, 0, 1):
            single = RuleContext((NAMES[i],), [pieces[i]])
            rule.apply(Update([again[i]], (i,)), select(parts, [i]), single)
    torch.testing.assert_close((whole, state), (pieces, parts), rtol=0, atol=0)
    assert [count.item() for count in state["waiting"]] == [0, 0, 0]


def test_delayed_nesterov_renews_even_if_a_race_has_counted_past_its_buffer() -> None:
    rule, weights = delayed_nesterov(0.1, buffer=2), draw(0)
    state, context = started(rule, weights)
    for count in state["waiting"]:
        count.fill_(2.0)
    rule.apply(Update(optional(draw(1))), state, context)
    assert all(momentum.any() for momentum in state["momentum"])
    assert [count.item() for count in state["waiting"]] == [0, 0, 0]


@pytest.mark.parametrize("workers", [1, 2, 5, 9])
def test_geometric_staleness_is_momentum(workers: int) -> None:
    # Steps of exponential length make the staleness geometric, P(k) = (1 - mu)^k / W with mu = 1/W. The mean
    # of such SGD on a quadratic must be heavy-ball with the momentum that the helper takes off.
    implicit = 1 - 1 / workers
    lr, curvature, steps = 0.1, 0.7, 40
    stale, ball, velocity = [1.0], [1.0], 0.0
    for t in range(steps):
        late = sum((1 - implicit) * implicit**k * curvature * stale[t - k] for k in range(t + 1))
        stale.append(stale[t] - lr * late)
        velocity = implicit * velocity - lr / workers * curvature * ball[t]
        ball.append(ball[t] + velocity)
    assert stale == pytest.approx(ball, rel=1e-12)
    assert momentum_under_staleness(0.95, workers) == pytest.approx(max(0.0, 0.95 - implicit))


def test_no_negative_momentum_is_asked_for() -> None:
    assert momentum_under_staleness(0.5, 2) == 0.0
    assert momentum_under_staleness(0.9, 1000) == 0.0


@pytest.mark.parametrize(
    "rule",
    [
        damp(),
        damp(0.5),
        expire(4),
        delay_compensate(0.04),
        delay_compensate(2.0, adaptive=True, decay=0.5),
        delayed_nesterov(0.7, buffer=4),
        delayed_nesterov(schedules.cosine(0.7), 0.8, buffer=2, activation=0.5),
    ],
    ids=lambda rule: str(rule.describe),
)
def test_the_description_is_the_call_and_the_rule_can_be_sent_to_another_process(rule: Rule) -> None:
    names = {**vars(rules), "cosine": schedules.cosine}
    assert eval(rule.describe, names).describe == rule.describe
    other: Rule = pickle.loads(cloudpickle.dumps(rule))
    assert other.describe == rule.describe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: damp(-1), r"`power` .* got -1; 1\.0 divides"),
        (lambda: damp(math.nan), r"`power` .* got nan"),
        (lambda: expire(-1), r"`max_staleness` must be a whole number >= 0, got -1; leave the rule out"),
        (lambda: expire(1.5), r"`max_staleness` .* got 1\.5"),  # type: ignore[arg-type]
        (lambda: expire(True), r"`max_staleness` .* got True"),
        (lambda: delay_compensate(-0.1), r"`strength` .* got -0\.1; 0\.04 is the paper's"),
        (lambda: delay_compensate(0.1, adaptive=True, decay=1.0), r"`decay` .* got 1\.0"),
        (lambda: delay_compensate(0.1, decay=0.5), r"`decay`=0\.5 needs adaptive=True"),
        (lambda: delayed_nesterov(-0.1, buffer=4), r"`lr` .* got -0\.1"),
        (lambda: delayed_nesterov(0.1, 1.0, buffer=4), r"`momentum` .* got 1\.0"),
        (lambda: delayed_nesterov(0.1, buffer=0), r"`buffer` .* got 0; the number of workers"),
        (lambda: delayed_nesterov(0.1, buffer=4, activation=0.3), r"`activation` .* <= 0\.25, got 0\.3"),
        (lambda: momentum_under_staleness(1.0, 2), r"`total` .* got 1\.0"),
        (lambda: momentum_under_staleness(0.9, 0), r"`workers` .* got 0"),
    ],
)
def test_arguments_out_of_range_are_named_with_a_remedy(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

from __future__ import annotations

import math
import pickle
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from freewheel import rules, schedules
from freewheel.errors import ConfigurationError
from freewheel.rules import Rule, RuleContext, Span, State, kernels, select
from freewheel.update import Update

FUSED = ("FUSED_SGD", "FUSED_ADAGRAD", "FUSED_ADAM", "FUSED_ADAMW")
STEPS = 50


class Twin(NamedTuple):
    """One row of the table: a rule and the optimizer that it has to equal."""

    rule: Callable[..., Rule]
    optimizer: type[torch.optim.Optimizer]
    settings: dict[str, Any]

    def theirs(self, weights: Sequence[Tensor], **more: Any) -> torch.optim.Optimizer:
        settings = {RENAMED.get(name, name): value for name, value in self.settings.items()}
        return self.optimizer(weights, **settings, **more)


RENAMED = {"initial_accumulator": "initial_accumulator_value"}
TWINS = [
    Twin(rules.sgd, torch.optim.SGD, {"lr": 0.1}),
    Twin(rules.sgd, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}),
    Twin(rules.sgd, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    Twin(rules.sgd, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    Twin(rules.adagrad, torch.optim.Adagrad, {"lr": 0.1}),
    Twin(
        rules.adagrad,
        torch.optim.Adagrad,
        {"lr": 0.1, "eps": 1e-4, "initial_accumulator": 0.5, "lr_decay": 0.1, "weight_decay": 0.01},
    ),
    Twin(rules.rmsprop, torch.optim.RMSprop, {"lr": 0.01}),
    Twin(rules.rmsprop, torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": 0.01}),
    Twin(rules.rmsprop, torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "momentum": 0.9}),
    Twin(rules.rmsprop, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True, "eps": 1e-2}),
    Twin(rules.adam, torch.optim.Adam, {"lr": 0.01}),
    Twin(rules.adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.01}),
    Twin(rules.adamw, torch.optim.AdamW, {"lr": 0.01}),
    Twin(rules.adamw, torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}),
]
table = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.rule(**twin.settings).describe)


@pytest.fixture(params=["fused", "foreach"])
def kernel_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "foreach":
        for name in FUSED:
            monkeypatch.setattr(kernels, name, frozenset())
    return str(request.param)


def network(dtype: torch.dtype) -> list[Tensor]:
    """Weights like those of a small network: channels_last, transposed, vectors and a scalar."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return [draw(4, 3, 3, 3).to(memory_format=torch.channels_last), draw(4), draw(16, 5).t(), draw(5), draw()]


def batch(weights: list[Tensor], step: int, unused: bool = False) -> list[Tensor | None]:
    """Random gradients with the weights' strides; where asked, some entries go without in turn."""
    generator = torch.Generator().manual_seed(1000 + step)
    draws = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
    gradients = [torch.empty_like(w).copy_(g) for w, g in zip(weights, draws, strict=True)]
    return [None if unused and (step + i) % 3 == 0 else g for i, g in enumerate(gradients)]


def started(rule: Rule, weights: list[Tensor]) -> tuple[State, RuleContext]:
    names = tuple(f"entry{i}" for i in range(len(weights)))
    return rule.init(Span(names, weights)), RuleContext(names=names, weights=weights)


def copies(weights: list[Tensor]) -> list[Tensor]:
    return [weight.clone() for weight in weights]


def close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    tolerance = 1e-12 if ours[0].dtype == torch.float64 else 3e-6
    torch.testing.assert_close(list(ours), [t.detach() for t in theirs], rtol=tolerance, atol=tolerance)


@table
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("unused", [False, True], ids=["all", "unused"])
@pytest.mark.usefixtures("kernel_set")
def test_every_step_equals_the_twin_in_torch_optim(twin: Twin, dtype: torch.dtype, unused: bool) -> None:
    weights, rule = network(dtype), twin.rule(**twin.settings)
    strides = [weight.stride() for weight in weights]
    theirs = [torch.nn.Parameter(weight.detach().clone().contiguous()) for weight in weights]
    optimizer = twin.theirs(theirs, foreach=False)
    state, context = started(rule, weights)
    for step in range(STEPS):
        gradients = batch(weights, step, unused)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone().contiguous()
        optimizer.step()
        update = Update(gradients)
        assert rule.apply(update, state, context) is update
        close(weights, theirs)
    assert [weight.stride() for weight in weights] == strides
    assert context.verdict == "applied"


@pytest.mark.parametrize(
    "twin", [t for t in TWINS if t.rule is not rules.rmsprop], ids=lambda t: t.rule(**t.settings).describe
)
def test_fused_kernels_are_used_and_equal_torch_bit_for_bit(twin: Twin) -> None:
    weights, rule = network(torch.float32), twin.rule(**twin.settings)
    theirs = [torch.nn.Parameter(weight.clone(memory_format=torch.preserve_format)) for weight in weights]
    optimizer = twin.theirs(theirs, fused=True)
    state, context = started(rule, weights)
    for step in range(STEPS):
        gradients = batch(weights, step)
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
        rule.apply(Update(gradients), state, context)
    for ours, other in zip(weights, theirs, strict=True):
        assert torch.equal(ours, other)


@table
@pytest.mark.usefixtures("kernel_set")
def test_pieces_one_by_one_equal_the_whole(twin: Twin) -> None:
    rule, whole, pieces = twin.rule(**twin.settings), network(torch.float32), network(torch.float32)
    state, context = started(rule, whole)
    parts, single = started(rule, pieces)
    for step in range(10):
        rule.apply(Update(batch(whole, step, unused=True)), state, context)
        gradients = batch(pieces, step, unused=True)
        for i in reversed(range(len(pieces))):
            single.names, single.weights = (f"entry{i}",), [pieces[i]]
            rule.apply(Update([gradients[i]], entries=(i,)), select(parts, [i]), single)
    for one, other in zip(whole, pieces, strict=True):
        assert torch.equal(one, other)


@table
def test_an_update_without_gradients_changes_nothing(twin: Twin) -> None:
    weights, rule = network(torch.float32), twin.rule(**twin.settings)
    state, context = started(rule, weights)
    before = copies(weights), {name: copies(leaf) for name, leaf in state.items()}
    rule.apply(Update([None] * len(weights)), state, context)
    torch.testing.assert_close((weights, state), before, rtol=0, atol=0)


@table
def test_state_is_aligned_with_the_span_and_has_the_weights_strides(twin: Twin) -> None:
    weights = network(torch.float64)
    state, _ = started(twin.rule(**twin.settings), weights)
    for name, leaf in state.items():
        for weight, tensor in zip(weights, leaf, strict=True):
            if name == "steps":
                assert tensor.shape == ()
            else:
                assert (tensor.shape, tensor.stride(), tensor.dtype) == (
                    weight.shape,
                    weight.stride(),
                    weight.dtype,
                )


def test_rules_without_momentum_allocate_no_state_for_it() -> None:
    weights = network(torch.float32)
    assert started(rules.sgd(0.1), weights)[0] == {}
    assert started(rules.frozen(), weights)[0] == {}
    assert set(started(rules.rmsprop(0.1), weights)[0]) == {"square"}


@pytest.mark.usefixtures("kernel_set")
def test_gradient_descent_on_a_quadratic_has_its_closed_form() -> None:
    # f(w) = h w^2 / 2 has w_k = (1 - lr h)^k w_0
    h, start, lr = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64), 0.2
    weights = [start.clone()]
    state, context = started(rules.sgd(lr), weights)
    for k in range(1, 41):
        rules.sgd(lr).apply(Update([h * weights[0]]), state, context)
        torch.testing.assert_close(weights[0], (1 - lr * h) ** k * start, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("kernel_set")
def test_heavy_ball_on_a_quadratic_has_its_closed_form() -> None:
    # w_{k+1} = (1 + m - lr h) w_k - m w_{k-1} with w_{-1} = w_0: roots r of r^2 - (1 + m - lr h) r + m
    lr, momentum, h = 0.1, 0.8, 0.7
    trace = 1 + momentum - lr * h
    root = complex(trace / 2, math.sqrt(momentum - trace**2 / 4))
    # w_k = Re(c r^k) with w_0 = 1 and w_1 = 1 - lr h
    c = complex(1, (root.real - (1 - lr * h)) / root.imag)
    weights, rule = [torch.ones(1, dtype=torch.float64)], rules.sgd(lr, momentum=momentum)
    state, context = started(rule, weights)
    for k in range(1, 101):
        rule.apply(Update([h * weights[0]]), state, context)
        assert weights[0].item() == pytest.approx((c * root**k).real, rel=1e-10, abs=1e-12)
    assert abs(weights[0].item()) < 1.1 * abs(c) * math.sqrt(momentum) ** 100


@pytest.mark.parametrize("factory", [rules.sgd, rules.adagrad, rules.rmsprop, rules.adam, rules.adamw])
@pytest.mark.parametrize(
    "plan", [schedules.cosine(0.1, final=0.01), lambda samples: 0.1 / (1 + samples / 100)]
)
def test_a_schedule_is_the_rate_at_the_samples_applied(factory: Callable[..., Rule], plan: Any) -> None:
    scheduled, plain = network(torch.float64), network(torch.float64)
    rule = factory(plan)
    state, context = started(rule, scheduled)
    context.planned = 1_000
    same, beside = started(rule, plain)
    for step in range(10):
        context.samples = 100 * step
        rule.apply(Update(batch(scheduled, step)), state, context)
        rate = schedules.as_schedule(plan)(100 * step, 1_000)
        factory(rate).apply(Update(batch(plain, step)), same, beside)
    close(scheduled, plain)


def test_a_schedule_without_a_plan_is_refused_before_any_weight_changes() -> None:
    weights, rule = network(torch.float32), rules.adam(schedules.cosine(0.1))
    state, context = started(rule, weights)
    with pytest.raises(ConfigurationError, match="`epochs` or `max_samples`"):
        rule.apply(Update([None] * len(weights)), state, context)  # known even before there are gradients
    with pytest.raises(ConfigurationError, match="no planned number"):
        rule.apply(Update(batch(weights, 0)), state, context)
    close(weights, network(torch.float32))
    assert [step.item() for step in state["steps"]] == [0.0] * len(weights)


def test_frozen_leaves_the_weights_alone() -> None:
    weights = network(torch.float32)
    state, context = started(rules.frozen(), weights)
    update = Update(batch(weights, 0))
    assert rules.frozen().apply(update, state, context) is update
    close(weights, network(torch.float32))
    assert rules.frozen().descends


def test_centred_rmsprop_survives_a_mean_square_below_zero() -> None:
    # Racing workers may leave the square behind the mean; the root of what remains would be NaN.
    weights, rule = [torch.ones(3)], rules.rmsprop(0.01, centered=True)
    state, context = started(rule, weights)
    state["mean"][0].fill_(10.0)
    rule.apply(Update([torch.ones(3)]), state, context)
    assert torch.isfinite(weights[0]).all()


@table
def test_threads_that_race_on_the_same_state_leave_finite_weights(twin: Twin) -> None:
    weights, rule = network(torch.float32), twin.rule(**twin.settings)
    state, _ = started(rule, weights)
    before, failures = copies(weights), []

    def work(worker: int) -> None:
        try:
            context = started(rules.frozen(), weights)[1]
            for step in range(100):
                rule.apply(Update(batch(weights, 100 * worker + step, unused=True)), state, context)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    for old, new in zip(before, weights, strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)


@table
def test_the_description_is_the_call_that_makes_the_rule(twin: Twin) -> None:
    described = twin.rule(**twin.settings).describe
    assert eval(described, vars(rules).copy()).describe == described


def test_the_description_names_a_schedule() -> None:
    described = rules.sgd(schedules.warmup(0.1, 100), momentum=0.9).describe
    assert described == ("sgd(lr=warmup(schedule=constant(lr=0.1), samples=100, start=0.0), momentum=0.9)")


@table
def test_rules_can_be_sent_to_another_process(twin: Twin) -> None:
    here, there = network(torch.float32), network(torch.float32)
    rule = twin.rule(**twin.settings)
    other: Rule = pickle.loads(cloudpickle.dumps(rule))
    for one, weights in ((rule, here), (other, there)):
        state, context = started(one, weights)
        one.apply(Update(batch(weights, 0)), state, context)
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_a_kernel_that_torch_lacks_is_found_missing() -> None:
    assert kernels.fused_devices("_fused_no_such_optimizer_") == frozenset()
    assert "cpu" in kernels.fused_devices("_fused_sgd_")


def test_weights_are_asked_for() -> None:
    with pytest.raises(ConfigurationError, match=r"context\.weights"):
        rules.sgd(0.1).apply(Update([None]), {}, RuleContext())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.sgd(-0.1), r"`lr` must be a number >= 0.*got -0\.1; give a float"),
        (lambda: rules.sgd(math.nan), r"`lr` .* got nan"),
        (lambda: rules.sgd("fast"), r"`lr` .* got 'fast'"),  # type: ignore[arg-type]
        (lambda: rules.sgd(True), r"`lr` .* got True"),
        (lambda: rules.sgd(0.1, momentum=1.0), r"`momentum` .* < 1, got 1\.0; 0\.9 is common"),
        (lambda: rules.sgd(0.1, nesterov=True), r"`nesterov`=True needs momentum"),
        (lambda: rules.sgd(0.1, weight_decay=-1), r"`weight_decay` .* got -1"),
        (lambda: rules.adagrad(0.1, eps=-1), r"`eps`"),
        (lambda: rules.adagrad(0.1, initial_accumulator=-1), r"`initial_accumulator`"),
        (lambda: rules.adagrad(0.1, lr_decay=math.inf), r"`lr_decay` .* finite, got inf"),
        (lambda: rules.adagrad(0.1, weight_decay=-1), r"`weight_decay`"),
        (lambda: rules.rmsprop(0.1, alpha=1.0), r"`alpha`"),
        (lambda: rules.rmsprop(0.1, eps=-1), r"`eps`"),
        (lambda: rules.rmsprop(0.1, momentum=-0.1), r"`momentum`"),
        (lambda: rules.rmsprop(0.1, weight_decay=-1), r"`weight_decay`"),
        (lambda: rules.adam(0.1, betas=0.9), r"`betas` must be two numbers, got 0\.9"),  # type: ignore[arg-type]
        (lambda: rules.adam(0.1, betas=(0.9, 1.0)), r"`betas\[1\]`"),
        (lambda: rules.adam(0.1, betas=(-0.1, 0.9)), r"`betas\[0\]`"),
        (lambda: rules.adamw(0.1, eps=-1e-8), r"`eps`"),
        (lambda: rules.adamw(0.1, weight_decay=-1), r"`weight_decay`"),
    ],
)
def test_arguments_out_of_range_are_named_with_a_remedy(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

from __future__ import annotations

import math
import pickle
import statistics
from collections.abc import Callable, Iterable

import cloudpickle  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor

from freewheel import rules
from freewheel.errors import ConfigurationError
from freewheel.rules import (
    Rule,
    RuleContext,
    Span,
    State,
    average,
    chain,
    delay_compensate,
    finite,
    quarantine,
    reject_outliers,
    sgd,
)
from freewheel.update import Update


def started(rule: Rule, workers: int = 1) -> tuple[State, RuleContext]:
    weights = [torch.zeros(2), torch.zeros(1)]
    return rule.init(Span(("a", "b"), weights)), RuleContext(("a", "b"), weights, workers=workers)


def push(rule: Rule, state: State, context: RuleContext, size: float, worker: int = 0) -> str:
    """The verdict on an update of this norm."""
    gradients: list[Tensor | None] = [torch.tensor([0.6 * size, 0.0]), torch.tensor([0.8 * size])]
    context.verdict, context.worker = "applied", worker
    result = rule.apply(Update(gradients, worker=worker), state, context)
    assert (result is None) is (context.verdict != "applied")
    return context.verdict


def verdicts(rule: Rule, sizes: Iterable[float]) -> list[str]:
    state, context = started(rule)
    return [push(rule, state, context, size) for size in sizes]


def naive(sizes: list[float], factor: float, window: int, warmup: int) -> list[str]:
    found = []
    for i, size in enumerate(sizes):
        earlier = sizes[max(0, i - window) : i]
        passes = i < warmup or size <= factor * statistics.median_low(earlier)
        found.append("applied" if passes else "outlier")
    return found


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("warmup", [1, 3])
def test_outliers_are_those_beyond_the_median_of_the_window(window: int, warmup: int) -> None:
    generator = torch.Generator().manual_seed(window)
    sizes = torch.randn(100, generator=generator).mul(1.5).exp().tolist()
    found = verdicts(reject_outliers(3.0, window, warmup), sizes)
    assert found == naive(sizes, 3.0, window, warmup)
    assert {"applied", "outlier"} == set(found)


def test_noise_is_dropped_and_nothing_else() -> None:
    sizes = [100.0 if i % 10 == 3 else 1.0 + 0.1 * (i % 7) for i in range(200)]
    found = verdicts(reject_outliers(), sizes)
    assert [verdict == "outlier" for verdict in found] == [size == 100.0 for size in sizes]


def test_a_bad_first_update_does_not_let_the_next_bad_one_pass() -> None:
    assert verdicts(reject_outliers(), [100.0, 1.0, 100.0, 1.0]) == [
        "applied",
        "applied",
        "outlier",
        "applied",
    ]


def test_a_lasting_change_of_size_is_followed() -> None:
    found = verdicts(reject_outliers(10.0, window=8), [1.0] * 20 + [50.0] * 20)
    assert found == ["applied"] * 20 + ["outlier"] * 5 + ["applied"] * 15


def test_updates_that_are_not_finite_are_dropped_and_not_remembered() -> None:
    found = verdicts(reject_outliers(), [1.0, math.nan, math.inf, 1.0, 20.0])
    assert found == ["applied", "non-finite", "non-finite", "applied", "outlier"]
    # the squares overflow, the norm does not
    assert verdicts(reject_outliers(), [1.0, 1e38, 1.0]) == ["applied", "outlier", "applied"]


def test_updates_without_gradients_pass() -> None:
    state, context = started(reject_outliers())
    assert reject_outliers().apply(Update([None, None]), state, context) is not None


def test_an_outlier_does_not_move_the_weights() -> None:
    rule = chain(reject_outliers(), sgd(1.0))
    state, context = started(rule)
    for size in (1.0, 1.0, 1000.0):
        push(rule, state, context, size)
    assert context.weights is not None
    torch.testing.assert_close(context.weights, [torch.tensor([-1.2, 0.0]), torch.tensor([-1.6])])


def test_a_worker_is_shut_out_after_drops_in_a_row() -> None:
    rule = quarantine(finite(), after=3)
    bad, good = math.nan, 1.0
    found = verdicts(rule, [bad, bad, good, bad, bad, bad, good, bad, good])
    assert found == [
        *["non-finite"] * 2,
        "applied",  # and so not in a row
        *["non-finite"] * 3,
        *["quarantined"] * 3,
    ]


def test_a_quarantine_that_ends_is_probation() -> None:
    rule = quarantine(finite(), after=2, for_updates=3)
    bad, good = math.nan, 1.0
    found = verdicts(rule, [bad, bad, *[good] * 3, bad, *[good] * 3, good, bad, good])
    assert found == [
        *["non-finite"] * 2,
        *["quarantined"] * 3,
        "non-finite",  # one is enough on probation
        *["quarantined"] * 3,
        "applied",  # a fresh start
        "non-finite",
        "applied",
    ]


def test_workers_have_records_of_their_own_that_grow_with_their_number() -> None:
    rule = quarantine(finite(), after=2)
    state, context = started(rule, workers=2)
    for _ in range(2):
        assert push(rule, state, context, math.nan, worker=1) == "non-finite"
    assert push(rule, state, context, 1.0, worker=0) == "applied"
    held = state["record"][0]
    assert held.tolist() == [0, 2]
    context.workers = 5
    assert push(rule, state, context, 1.0, worker=4) == "applied"
    assert push(rule, state, context, 1.0, worker=6) == "applied"  # more than were announced
    assert push(rule, state, context, 1.0, worker=1) == "quarantined"
    assert state["record"][0] is held
    assert held.tolist() == [0, 2, 0, 0, 0, 0, 0]


def test_what_a_quarantined_worker_pushes_does_not_reach_the_rule() -> None:
    rule = quarantine(reject_outliers(), after=1)
    state, context = started(rule, workers=2)
    push(rule, state, context, 1.0, worker=0)
    for _ in range(50):
        push(rule, state, context, 100.0, worker=1)
    assert context.verdict == "quarantined"
    assert state["rule"]["seen"][0].item() == 2  # else its norms would be the median by now
    assert push(rule, state, context, 100.0, worker=0) == "outlier"


def test_absorbed_is_not_dropped() -> None:
    rule = quarantine(chain(finite(), average(4)), after=1)
    state, context = started(rule)
    found = []
    for _ in range(4):
        context.verdict = "applied"
        rule.apply(Update([torch.ones(2), torch.ones(1)]), state, context)
        found.append(context.verdict)
    assert found == ["absorbed"] * 3 + ["applied"]


def test_the_rest_of_a_chain_goes_on_with_what_passes() -> None:
    rule = chain(quarantine(chain(finite(), reject_outliers()), after=2), sgd(1.0))
    state, context = started(rule, workers=2)
    for _ in range(10):
        push(rule, state, context, 1.0, worker=0)
        push(rule, state, context, 100.0, worker=1)
    assert context.weights is not None
    torch.testing.assert_close(context.weights[1], torch.tensor([-8.0]))
    assert (rule.scope, rule.descends, rule.exclusive) == ("update", True, True)


def test_what_the_rule_needs_is_needed() -> None:
    assert quarantine(chain(delay_compensate(0.1), finite())).needs_pulled
    assert not quarantine(finite()).needs_pulled


@pytest.mark.parametrize(
    "rule",
    [
        reject_outliers(),
        reject_outliers(20.0, window=8, warmup=2),
        quarantine(finite()),
        quarantine(reject_outliers(4.0), after=2, for_updates=9),
    ],
    ids=lambda rule: str(rule.describe),
)
def test_the_description_is_the_call_and_the_rule_can_be_sent_to_another_process(rule: Rule) -> None:
    assert eval(rule.describe, vars(rules).copy()).describe == rule.describe
    other: Rule = pickle.loads(cloudpickle.dumps(rule))
    sizes = [1.0, 100.0, 100.0, 1.0, math.nan]
    assert verdicts(other, sizes) == verdicts(rule, sizes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reject_outliers(0.5), r"`factor` .* got 0\.5; 10\.0 is common"),
        (lambda: reject_outliers(1), r"`factor` must be > 1, got 1"),
        (lambda: reject_outliers(math.inf), r"`factor` .* got inf; .* leave the rule out"),
        (lambda: reject_outliers(window=0), r"`window` .* got 0"),
        (lambda: reject_outliers(warmup=0), r"`warmup` .* got 0; the first update has nothing"),
        (lambda: quarantine(finite(), after=0), r"`after` .* got 0; 5 is common"),
        (lambda: quarantine(finite(), for_updates=0), r"`for_updates` .* got 0; leave it out"),
        (lambda: quarantine(finite), r"`rule` must be a Rule, such as reject_outliers\(\)"),  # type: ignore[arg-type]
        (lambda: quarantine(chain(finite(), sgd(0.1))), r"writes the weights; .* put the descent behind"),
    ],
)
def test_arguments_out_of_range_are_named_with_a_remedy(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()

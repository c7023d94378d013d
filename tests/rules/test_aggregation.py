from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from freewheel import rules
from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.rules import (
    Rule,
    RuleContext,
    Span,
    State,
    accumulate,
    average,
    chain,
    damp,
    finite,
    krum,
    median,
    select,
    sgd,
    trimmed_mean,
)
from freewheel.rules.robust import krum_scores
from freewheel.server import Server
from freewheel.update import Update

Gradients = list[Tensor | None]
SHAPES = [(2, 3, 3, 3), (5,), ()]
NAMES = tuple(f"entry{i}" for i in range(len(SHAPES)))


def weights_of(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    first, *rest = [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
    return [first.to(memory_format=torch.channels_last), *rest]


def draw(seed: int) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of()
    return [torch.empty_like(w).copy_(torch.randn(w.shape, generator=generator)) for w in weights]


def started(rule: Rule) -> tuple[State, RuleContext]:
    weights = weights_of()
    return rule.init(Span(NAMES, weights)), RuleContext(NAMES, weights)


def run(rule: Rule, batches: Sequence[Gradients], samples: Sequence[int] | None = None) -> Update:
    """What the rule makes of these updates; checks that all but the last are absorbed."""
    state, context = started(rule)
    result = None
    for position, gradients in enumerate(batches):
        assert result is None
        context.verdict, context.released = "applied", 0
        count = samples[position] if samples else 1
        result = rule.apply(Update(gradients, samples=count, worker=position), state, context)
        last = position == len(batches) - 1
        assert context.verdict == ("applied" if last else "absorbed")
        assert context.released == (len(batches) - 1 if last else 0)
    assert result is not None
    return result


def stacked(batches: Sequence[Gradients], entry: int) -> Any:
    """(n, ...) with zeros for what is None."""
    shape = SHAPES[entry]
    found = [batch[entry] for batch in batches]
    return np.stack([np.zeros(shape) if value is None else value.numpy() for value in found])


def holed(n: int) -> list[Gradients]:
    """Batches in which some entries are None."""
    return [[None if (b + i) % 3 == 0 else g for i, g in enumerate(draw(b))] for b in range(n)]


def copied(batches: Sequence[Gradients]) -> list[Gradients]:
    return [[None if g is None else g.clone() for g in batch] for batch in batches]


def numpy_average(values: Any, samples: Any) -> Any:
    return np.tensordot(samples / samples.sum(), values, axes=1)


def naive_krum(batches: Sequence[Gradients], faulty: int, best: int) -> list[int]:
    """The chosen updates, from Blanchard et al. 2017, section 4."""
    n = len(batches)
    flat = [np.concatenate([stacked([batch], e).ravel() for e in range(len(SHAPES))]) for batch in batches]
    scores = []
    for i in range(n):
        distances = sorted(((flat[i] - flat[j]) ** 2).sum() for j in range(n) if j != i)
        scores.append(sum(distances[: n - faulty - 2]))
    return list(np.argsort(scores)[:best])


TABLE: list[tuple[Rule, Callable[[Any, Any], Any]]] = [
    (average(6), numpy_average),
    (accumulate(6), lambda values, samples: values.sum(0)),
    (median(6), lambda values, samples: np.median(values, axis=0)),
    (median(7), lambda values, samples: np.median(values, axis=0)),
    (median(2), lambda values, samples: values.mean(0)),
    (trimmed_mean(7, trim=2), lambda values, samples: np.sort(values, axis=0)[2:5].mean(0)),
    (trimmed_mean(6, trim=0), lambda values, samples: values.mean(0)),
    (trimmed_mean(9, trim=4), lambda values, samples: np.sort(values, axis=0)[4]),
]
table = pytest.mark.parametrize(("rule", "expected"), TABLE, ids=[rule.describe for rule, _ in TABLE])
ALL = [average(3), accumulate(3), median(3), trimmed_mean(3, trim=1), krum(3, faulty=0)]
everyone = pytest.mark.parametrize("rule", ALL, ids=lambda rule: str(rule.describe))


def size(rule: Rule) -> int:
    return int(rule.describe.partition("n=")[2].rstrip(")").split(",")[0])


@table
@pytest.mark.parametrize("make", [lambda n: [draw(seed) for seed in range(n)], holed], ids=["all", "holes"])
def test_the_aggregate_equals_numpy(
    rule: Rule, expected: Callable[[Any, Any], Any], make: Callable[[int], list[Gradients]]
) -> None:
    n = size(rule)
    samples = [1 + position for position in range(n)]
    update = run(rule, make(n), samples)
    for entry, gradient in enumerate(update.gradients):
        assert gradient is not None
        wanted = expected(stacked(make(n), entry), np.array(samples))
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-12, atol=1e-12)
        assert gradient.stride() == weights_of()[entry].stride()
    assert update.samples == sum(samples)


@pytest.mark.parametrize(("n", "faulty", "best"), [(3, 0, 1), (7, 2, 1), (8, 2, 3), (9, 3, 6)])
@pytest.mark.parametrize("make", [lambda n: [draw(seed) for seed in range(n)], holed], ids=["all", "holes"])
def test_krum_equals_a_naive_one(n: int, faulty: int, best: int, make: Any) -> None:
    update = run(krum(n, faulty, best), make(n), [2] * n)
    chosen = naive_krum(make(n), faulty, best)
    for entry, gradient in enumerate(update.gradients):
        assert gradient is not None
        wanted = stacked(make(n), entry)[chosen].mean(0)
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-12, atol=1e-12)
    assert update.samples == 2 * n


@pytest.mark.parametrize(
    "rule",
    [median(8), trimmed_mean(8, trim=2), krum(8, faulty=2), krum(8, faulty=2, select=6)],
    ids=lambda rule: str(rule.describe),
)
@pytest.mark.parametrize("bad", [1e3, -1e30, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("places", [(0, 1), (3, 7), (6, 7)])
def test_planted_outliers_are_ignored(rule: Rule, bad: float, places: tuple[int, int]) -> None:
    batches = [draw(seed) for seed in range(8)]
    honest = [copied(batches)[i] for i in range(8) if i not in places]
    for i in places:
        batches[i] = [torch.full_like(g, bad) for g in draw(0) if g is not None]
    update = run(rule, batches)
    for entry, gradient in enumerate(update.gradients):
        values = stacked(honest, entry)
        assert gradient is not None
        assert (gradient.numpy() <= values.max(0)).all()
        assert (gradient.numpy() >= values.min(0)).all()


def test_multi_krum_among_outliers_is_the_mean_of_the_others() -> None:
    batches = [draw(seed) for seed in range(7)]
    honest = copied(batches[2:])
    for i in range(2):
        batches[i] = [1e4 * g for g in draw(50 + i) if g is not None]
    gradient = run(krum(7, faulty=2, select=5), batches).gradients[1]
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy(), stacked(honest, 1).mean(0), rtol=1e-12, atol=1e-14)


def test_plain_averaging_does_not_ignore_an_outlier() -> None:
    update = run(average(3), [draw(0), draw(1), [1e6 * g for g in draw(2) if g is not None]])
    gradient = update.gradients[0]
    assert gradient is not None
    assert gradient.abs().max() > 1e4


def test_krum_tells_near_updates_apart_beside_a_huge_one() -> None:
    # distances by inner products in float32 would see no difference beside 1e12
    values = [0.0, 1e-3, 2e-3, 1e12, 5e-3]
    scores = krum_scores([[torch.full((4,), value)] for value in values], 2)
    assert scores.index(min(scores)) == 1
    assert scores[0] == pytest.approx(4 * (1e-6 + 4e-6), rel=1e-3)


@pytest.mark.parametrize("rule", [*ALL[:4], krum(5, faulty=1)], ids=lambda rule: str(rule.describe))
@pytest.mark.parametrize("turn", [1, 2])
def test_permuting_the_updates_changes_nothing(rule: Rule, turn: int) -> None:
    order = list(range(size(rule)))
    turned = order[turn:] + order[:turn]
    one = run(rule, [draw(seed) for seed in order], [1 + seed for seed in order])
    other = run(rule, [draw(seed) for seed in turned], [1 + seed for seed in turned])
    torch.testing.assert_close(one.gradients, other.gradients, rtol=1e-12, atol=1e-14)


@everyone
def test_rounds_follow_each_other_and_state_does_not_grow(rule: Rule) -> None:
    state, context = started(rule)
    places = addresses(state)
    first: Gradients = []
    for round_ in range(3):
        for position in range(3):
            result = rule.apply(Update(holed(3)[position]), state, context)
            assert (result is None) is (position < 2)
        assert result is not None
        first = first or copied([result.gradients])[0]
        torch.testing.assert_close(result.gradients, first, rtol=0, atol=0, msg=f"round {round_}")
    assert addresses(state) == places


def addresses(state: State) -> dict[str, list[int | None]]:
    return {
        name: [None if t is None else t.untyped_storage().data_ptr() for t in leaf]
        for name, leaf in state.items()
    }


@everyone
def test_the_aggregate_has_memory_of_its_own(rule: Rule) -> None:
    for batches in ([draw(0), draw(1), draw(2)], [draw(0), draw(1), [None, *draw(2)[1:]]]):
        state, context = started(rule)
        for gradients in batches:
            result = rule.apply(Update(gradients), state, context)
        assert result is not None
        kept = {place for leaf in addresses(state).values() for place in leaf}
        for gradient in result.gradients:
            assert gradient is not None
            assert gradient.untyped_storage().data_ptr() not in kept
            gradient.fill_(math.nan)  # what the next rule may do
        again = [rule.apply(Update(gradients), state, context) for gradients in (draw(0), draw(1), draw(2))]
        assert again[2] is not None
        assert all(bool(g.isfinite().all()) for g in again[2].gradients if g is not None)


@everyone
def test_absorbed_gradients_may_be_overwritten_by_their_owner(rule: Rule) -> None:
    state, context = started(rule)
    for seed in range(2):
        gradients = draw(seed)
        rule.apply(Update(gradients), state, context)
        for gradient in gradients:
            assert gradient is not None
            gradient.fill_(math.nan)
    result = rule.apply(Update(draw(2)), state, context)
    assert result is not None
    expected = run(rule, [draw(0), draw(1), draw(2)])
    torch.testing.assert_close(result.gradients, expected.gradients, rtol=0, atol=0)


@everyone
def test_an_entry_that_no_update_has_a_gradient_for_stays_none(rule: Rule) -> None:
    update = run(rule, [[None, *draw(seed)[1:]] for seed in range(3)])
    assert [gradient is None for gradient in update.gradients] == [True, False, False]
    assert run(rule, [[None] * 3 for _ in range(3)]).gradients == [None] * 3


@everyone
def test_an_entry_counts_as_used_in_its_own_round_only(rule: Rule) -> None:
    state, context = started(rule)
    for round_ in range(2):
        for seed in range(3):
            gradients = draw(seed)
            result = rule.apply(
                Update([gradients[0], gradients[1] if round_ == 0 else None, None]), state, context
            )
        assert result is not None
        assert [gradient is None for gradient in result.gradients] == [False, round_ == 1, True]


@pytest.mark.parametrize("rule", [average(1), accumulate(1), median(1), trimmed_mean(1, trim=0)])
def test_one_update_is_its_own_aggregate_bit_for_bit(rule: Rule) -> None:
    gradients: Gradients = [torch.tensor([0.1, 1e-30, math.inf]), torch.ones(2), None]
    state, context = started(rule)
    result = rule.apply(Update(list(gradients), samples=3), state, context)
    assert result is not None
    assert all(one is other for one, other in zip(result.gradients, gradients, strict=True))
    assert (context.verdict, context.released, result.samples) == ("applied", 0, 3)


@everyone
def test_a_bad_round_leaves_nothing_behind(rule: Rule) -> None:
    state, context = started(rule)
    for gradients in ([[torch.full_like(g, math.nan) for g in draw(0) if g is not None]] * 3)[:]:
        rule.apply(Update([g.clone() for g in gradients]), state, context)
    for seed in range(3):
        result = rule.apply(Update(draw(seed)), state, context)
    assert result is not None
    expected = run(rule, [draw(seed) for seed in range(3)])
    torch.testing.assert_close(result.gradients, expected.gradients, rtol=0, atol=0)


def test_examples_of_no_number_weigh_nothing() -> None:
    update = run(average(2), [draw(0), draw(1)], [0, 0])
    assert all(g is not None and not g.any() for g in update.gradients)


def test_a_chain_releases_what_its_aggregation_had_absorbed() -> None:
    rule = chain(finite(), damp(), average(3), sgd(1.0))
    weights = weights_of()
    state, context = rule.init(Span(NAMES, weights)), RuleContext(NAMES, weights)
    verdicts, released = [], []
    for step, staleness in enumerate((2, 0, 4, 0, 0, 0)):
        context.verdict, context.released, context.staleness = "applied", 0, staleness
        gradients = [torch.full_like(weight, math.nan if step == 1 else 12.0) for weight in weights]
        rule.apply(Update(list(gradients)), state, context)
        verdicts.append(context.verdict)
        released.append(context.released)
    assert verdicts == ["absorbed", "non-finite", "absorbed", "applied", "absorbed", "absorbed"]
    assert released == [0, 0, 0, 2, 0, 0]
    torch.testing.assert_close(weights[1], torch.full((5,), -(6.0 + 3.0 + 12.0) / 3, dtype=torch.float64))
    assert (rule.scope, rule.exclusive) == ("update", True)


def test_aggregates_of_aggregates_release_every_push() -> None:
    rule = chain(average(2), accumulate(3))
    state, context = started(rule)
    total = 0
    for position in range(6):
        context.verdict, context.released = "applied", 0
        result = rule.apply(Update(draw(position), samples=1), state, context)
        assert (result is not None) is (position == 5)
        total += context.released
    assert (context.verdict, context.released, total) == ("applied", 5, 5)
    assert result is not None
    assert result.samples == 6


def test_what_the_last_update_pulled_does_not_speak_for_the_others() -> None:
    state, context = started(average(2))
    for seed in range(2):
        result = average(2).apply(Update(draw(seed), pulled=weights_of()), state, context)
    assert result is not None
    assert result.pulled is None


@everyone
def test_state_of_some_entries_shares_its_tensors(rule: Rule) -> None:
    state, _ = started(rule)
    part = select(state, [0, 2])
    for name, leaf in part.items():
        assert leaf == [state[name][0], state[name][2]] or all(
            one is other for one, other in zip(leaf, (state[name][0], state[name][2]), strict=True)
        )
        for tensor, weight in zip(state[name], weights_of(), strict=True):
            assert tensor is None or tensor.shape in (weight.shape, ())


def test_a_running_sum_needs_one_buffer_and_a_choice_one_fewer_than_updates() -> None:
    def buffers(rule: Rule) -> int:
        return sum(leaf[1] is not None and leaf[1].shape == (5,) for leaf in started(rule)[0].values())

    assert [buffers(rule) for rule in (average(9), accumulate(9), median(9), krum(9, faulty=1))] == [
        1,
        1,
        8,
        8,
    ]


@everyone
def test_the_description_is_the_call_and_the_rule_can_be_sent_to_another_process(rule: Rule) -> None:
    assert eval(rule.describe, vars(rules).copy()).describe == rule.describe
    other: Rule = pickle.loads(cloudpickle.dumps(rule))
    one, two = run(rule, [draw(s) for s in range(3)]), run(other, [draw(s) for s in range(3)])
    torch.testing.assert_close(one.gradients, two.gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: average(0), r"`n` must be a whole number >= 1, got 0; give the number of updates"),
        (lambda: accumulate(2.0), r"`n` .* got 2\.0"),  # type: ignore[arg-type]
        (lambda: median(-1), r"`n` .* got -1"),
        (lambda: trimmed_mean(4, trim=2), r"`trim` must leave some of `n`=4 updates, got 2; use at most 1"),
        (lambda: trimmed_mean(4, trim=-1), r"`trim` .* got -1"),
        (lambda: trimmed_mean(0, trim=0), r"`n` .* got 0"),
        (lambda: krum(2, faulty=0), r"`n` .* >= 3, got 2; .*median"),
        (lambda: krum(6, faulty=2), r"`n` must be >= 2 \* faulty \+ 3 = 7, got 6; gather more"),
        (lambda: krum(7, faulty=-1), r"`faulty` .* got -1"),
        (lambda: krum(7, faulty=2, select=0), r"`select` .* got 0"),
        (lambda: krum(7, faulty=2, select=6), r"`select` must be <= n - faulty = 5, got 6"),
    ],
)
def test_arguments_out_of_range_are_named_with_a_remedy(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("rule", [*ALL[:4], krum(5, faulty=1, select=2)], ids=lambda rule: str(rule.describe))
@pytest.mark.parametrize("shards", [1, 3])
def test_a_servers_book_adds_up_and_shards_change_nothing(rule: Rule, shards: int) -> None:
    n, pushes = size(rule), 11
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    server = Server(Parameters(module), chain(finite(), rule, sgd(0.1)), 2, shards=shards)
    generator = torch.Generator().manual_seed(1)
    waiting: list[list[Tensor]] = []
    for push in range(pushes):
        came = [torch.randn(weight.shape, generator=generator) for weight in weights]
        waiting.append([gradient.clone() for gradient in came])
        update = Update(list(came), worker=push % 2, sequence=push // 2, samples=4, version=server.version)
        status = server.push(update).status
        assert status == ("applied" if len(waiting) == n else "absorbed")
        if status == "applied":
            combine(rule, waiting, weights)
            waiting.clear()
    torch.testing.assert_close(server.parameters.trainable_views(), weights, rtol=1e-5, atol=1e-6)
    book, rounds = server.ledger(), pushes // n
    assert (book["pushed"], book["applied"], book["absorbed"]) == (pushes, rounds, rounds * (n - 1))
    assert (book["pending"], server.version, server.samples) == (pushes % n, rounds, 4 * n * rounds)


def combine(rule: Rule, updates: Sequence[Sequence[Tensor]], weights: list[Tensor]) -> None:
    """One step of the rule alone, and of gradient descent, on these weights."""
    state, context = rule.init(Span(tuple("abcd"), weights)), RuleContext()
    for gradients in updates:
        result = rule.apply(Update(list(gradients), samples=4), state, context)
    assert result is not None
    for weight, gradient in zip(weights, result.gradients, strict=True):
        assert gradient is not None
        weight.sub_(0.1 * gradient)

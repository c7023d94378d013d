"""The server: every update is applied once, or dropped with a reason, and the book adds up."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.rules import Rule, RuleContext, State, adam, chain, clip, finite, sgd, stateless
from freewheel.server import Server
from freewheel.update import Update


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def server_of(module: nn.Module, rule: Rule | None = None, workers: int = 1, rounds: bool = False) -> Server:
    return Server(Parameters(module), rule or sgd(0.1, momentum=0.9), workers, rounds)


def gradients(server: Server, seed: int = 0) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty_like(view).copy_(torch.randn(view.shape, generator=generator))
        for view in server.parameters.trainable_views()
    ]


def strides(tensors: Sequence[Tensor | None]) -> list[tuple[int, ...]]:
    return [tensor.stride() for tensor in tensors if tensor is not None]


def push_pieces(server: Server, sequence: int, seed: int, order: list[int]) -> None:
    whole = gradients(server, seed)
    for entry in order:
        server.push(Update([whole[entry]], (entry,), sequence=sequence, last=False))
    server.push(Update([], sequence=sequence))


def adds_up(server: Server) -> bool:
    book = server.ledger()
    kinds = book["applied"] + book["absorbed"] + book["pending"] + sum(book["dropped"].values())
    return bool(book["pushed"] == kinds)


def test_a_push_is_a_step_of_the_rule() -> None:
    module = network()
    server = server_of(module)
    reference = network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        given = gradients(server, step)
        for parameter, gradient in zip(reference.parameters(), given, strict=True):
            assert gradient is not None
            parameter.grad = gradient.clone()
        optimizer.step()
        receipt = server.push(Update(given, version=step, sequence=step))
        assert receipt == ("applied", 0)
    for view, parameter in zip(server.parameters.trainable_views(), reference.parameters(), strict=True):
        torch.testing.assert_close(view, parameter.detach())
    assert server.version == 4


def test_staleness_is_what_others_applied_since_the_pull() -> None:
    server = server_of(network(), workers=3)
    for worker, version, expected in ((0, 0, 0), (1, 0, 1), (2, 1, 1), (0, 1, 2)):
        sequence = 1 if (worker, version) == (0, 1) else 0
        update = Update(gradients(server), version=version, worker=worker, sequence=sequence)
        assert server.push(update).staleness == expected


@pytest.mark.parametrize("rounds", [False, True])
def test_a_repeated_push_changes_nothing(rounds: bool) -> None:
    server = server_of(network(), rounds=rounds)
    for sequence in range(3):
        server.push(Update(gradients(server, sequence), sequence=sequence))
    before, book = server.parameters.flat.clone(), server.ledger()
    for sequence in (0, 2, 1, 2):
        assert server.push(Update(gradients(server, 9), sequence=sequence)).status == "duplicate"
    assert torch.equal(server.parameters.flat, before)
    assert server.ledger() == {**book, "duplicates": 4}
    assert server.version == 3
    assert adds_up(server)


@pytest.mark.parametrize("rounds", [False, True])
def test_a_repeated_piece_changes_nothing(rounds: bool) -> None:
    server = server_of(network(), rounds=rounds)
    other = server_of(network(), rounds=rounds)
    push_pieces(other, 0, 5, [3, 2, 1, 0])
    push_pieces(server, 0, 5, [3, 3, 2, 1, 2, 0, 3])
    server.push(Update([gradients(server)[1]], (1,), sequence=0, last=False))  # after the end of its step
    assert torch.equal(server.parameters.flat, other.parameters.flat)
    assert server.ledger()["duplicates"] == 4
    assert server.ledger()["applied"] == server.version == 1


def test_an_old_life_is_fenced_and_a_new_one_counts_from_zero() -> None:
    server = server_of(network())
    for sequence in range(3):
        server.push(Update(gradients(server), sequence=sequence))
    server.push(Update([gradients(server)[0]], (0,), sequence=3, last=False))  # and then the worker died
    push_pieces_again = Update([gradients(server)[0]], (0,), sequence=0, last=False, incarnation=1)
    assert server.push(push_pieces_again).status == "applied"
    assert server.push(Update([], sequence=0, incarnation=1)).status == "applied"
    before = server.parameters.flat.clone()
    assert server.push(Update(gradients(server), sequence=3)).status == "duplicate"
    assert server.push(Update(gradients(server), sequence=0, incarnation=1)).status == "duplicate"
    assert torch.equal(server.parameters.flat, before)
    assert server.push(Update(gradients(server), sequence=1, incarnation=1)).status == "applied"
    assert server.ledger()["pushed"] == server.ledger()["applied"] == 5


@pytest.mark.parametrize(
    "rule", [sgd(0.1, momentum=0.9, weight_decay=0.1), adam(0.01)], ids=lambda r: r.describe
)
@pytest.mark.parametrize("rounds", [False, True])
def test_layer_by_layer_equals_the_whole_in_every_order(rule: Rule, rounds: bool) -> None:
    whole = server_of(network(), rule, rounds=rounds)
    for sequence in range(3):
        whole.push(Update(gradients(whole, sequence), sequence=sequence))
    for order in itertools.islice(
        itertools.permutations(range(len(whole.parameters.layout.trainable))), 0, 720, 97
    ):
        pieces = server_of(network(), rule, rounds=rounds)
        for sequence in range(3):
            push_pieces(pieces, sequence, sequence, list(order))
        torch.testing.assert_close(pieces.parameters.flat, whole.parameters.flat)
        assert pieces.version == whole.version == 3
        assert pieces.ledger() == whole.ledger()


@pytest.mark.parametrize("rule", [sgd(0.1, momentum=0.9), adam(0.01)], ids=lambda rule: rule.describe)
def test_gradients_of_other_strides_are_conformed(rule: Rule) -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(4, 3))
    usual, odd = (Server(Parameters(module, channels_last=True), rule, 1) for _ in range(2))
    for sequence in range(2):
        given = gradients(usual, sequence)
        strange: list[Tensor | None] = [
            g.clone(memory_format=torch.contiguous_format).mT.contiguous().mT if g.dim() > 1 else g.clone()
            for g in given
            if g is not None
        ]
        assert strides(strange) != strides(odd.parameters.trainable_views())
        usual.push(Update(given, sequence=sequence))
        odd.push(Update(strange, sequence=sequence))
    assert torch.equal(usual.parameters.flat, odd.parameters.flat)


def test_an_expanded_gradient_is_a_full_one() -> None:
    usual, expanded = (
        server_of(network(), chain(clip(0.5), sgd(0.1))),
        server_of(network(), chain(clip(0.5), sgd(0.1))),
    )
    shapes = [view.shape for view in usual.parameters.trainable_views()]
    usual.push(Update([torch.ones(shape) for shape in shapes]))
    one = torch.ones(())
    expanded.push(Update([one.expand(shape) for shape in shapes]))
    assert torch.equal(usual.parameters.flat, expanded.parameters.flat)
    assert one == 1


@pytest.mark.parametrize("rounds", [False, True])
def test_one_tensor_as_the_gradient_of_two_weights_is_changed_once_for_each(rounds: bool) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    module = Sum()
    workers = 2 if rounds else 1
    server = server_of(module, chain(clip(1.0), sgd(1.0)), workers, rounds)
    for worker in range(workers):
        shared = torch.full((3,), 10.0)
        server.push(Update([shared, shared.view(3)], worker=worker))
    a, b = server.parameters.trainable_views()
    torch.testing.assert_close(a, torch.full((3,), -(6**-0.5)))
    assert torch.equal(a, b)


def test_weights_without_a_gradient_are_left_alone() -> None:
    server = server_of(network(), adam(0.1))
    server.push(Update(gradients(server), sequence=0))
    before = [view.clone() for view in server.parameters.trainable_views()]
    given = gradients(server)
    given[0] = given[3] = None
    server.push(Update(given, sequence=1))
    changed = [
        not torch.equal(a, b) for a, b in zip(before, server.parameters.trainable_views(), strict=True)
    ]
    assert changed == [False, True, True, False, True, True]
    server.push(Update([None] * 6, sequence=2))
    assert server.ledger()["applied"] == 3


def test_statistics_are_assigned_by_one_worker_and_blended_by_several() -> None:
    alone, several = server_of(network()), server_of(network(), workers=4)
    start = alone.parameters.statistics.clone()
    arrived = torch.full_like(start, 8.0)
    alone.push(Update(gradients(alone), buffers=arrived))
    several.push(Update(gradients(several), worker=2, buffers=arrived))
    assert torch.equal(alone.parameters.statistics, arrived)
    torch.testing.assert_close(several.parameters.statistics, start + (arrived - start) / 4)


def test_statistics_of_a_round_are_the_mean_over_those_who_were_not_rejected() -> None:
    server = server_of(network(), workers=3, rounds=True)
    size = server.parameters.statistics.numel()
    server.push(Update(gradients(server), worker=2, buffers=torch.full((size,), 4.0)))
    server.push(Update([], worker=1, rejected="non-finite loss", buffers=torch.full((size,), torch.nan)))
    server.push(Update(gradients(server), worker=0, buffers=torch.full((size,), 2.0)))
    assert torch.equal(server.parameters.statistics, torch.full((size,), 3.0))


def test_statistics_of_a_dropped_update_are_dropped_too() -> None:
    server = server_of(network(), chain(finite(), sgd(0.1)))
    before = server.parameters.statistics.clone()
    server.push(
        Update(
            [torch.full_like(g, torch.nan) for g in gradients(server) if g is not None], buffers=before + 1
        )
    )
    assert torch.equal(server.parameters.statistics, before)


@pytest.mark.parametrize("rounds", [False, True])
def test_a_drop_names_its_reason_and_changes_nothing(rounds: bool) -> None:
    server = server_of(network(), chain(finite(), sgd(0.1)), rounds=rounds)
    before = server.parameters.flat.clone()
    bad = gradients(server)
    assert bad[2] is not None
    bad[2][0] = torch.inf
    server.push(Update(bad, sequence=0, samples=7))
    server.push(Update([], sequence=1, samples=7, rejected="non-finite loss"))
    assert torch.equal(server.parameters.flat, before)
    assert server.version == server.samples == 0
    book = server.ledger()
    assert book["pushed"] == 2
    assert book["dropped"] == {"non-finite": 1, "non-finite loss": 1}
    assert server.dropped()[0] == {"non-finite": 1, "non-finite loss": 1}
    assert adds_up(server)


@pytest.mark.parametrize("rounds", [False, True])
def test_a_step_with_a_dropped_piece_is_not_booked_as_applied(rounds: bool) -> None:
    server = server_of(network(), chain(finite("piece"), sgd(0.1)), rounds=rounds)
    good = gradients(server)
    server.push(Update([good[1]], (1,), last=False))
    server.push(Update([torch.full((3, 4), torch.nan)], (0,), last=False))
    server.push(Update([]))
    assert server.ledger()["dropped"] == {"non-finite": 1}
    push_pieces(server, 1, 0, [0, 1])
    assert server.ledger()["applied"] == server.version == 1
    assert adds_up(server)


def absorb_every_other() -> Rule:
    """Takes in the updates of even sequence and hands on the others, in place of both."""

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        if update.sequence % 2 == 0:
            context.verdict = "absorbed"
            return None
        context.released = 1
        return update

    return Rule("piece", stateless, apply, "absorb_every_other()")


def test_absorbed_updates_are_in_the_book_but_not_in_the_version() -> None:
    server = server_of(network(), chain(absorb_every_other(), sgd(0.1)))
    for sequence in range(5):
        server.push(Update(gradients(server), sequence=sequence, samples=3))
    ledger = server.ledger()
    assert (ledger["absorbed"], ledger["applied"], ledger["pending"]) == (2, 2, 1)
    assert (server.version, server.samples) == (2, 6)
    assert adds_up(server)


def test_a_round_is_pending_until_everybody_has_pushed() -> None:
    server = server_of(network(), sgd(1.0), workers=3, rounds=True)
    before = server.parameters.flat.clone()
    for worker in (2, 0):
        assert server.push(Update(gradients(server, worker), worker=worker, samples=2)).status == "pending"
    assert server.ledger()["pending"] == 2
    assert torch.equal(server.parameters.flat, before)
    server.push(Update(gradients(server, 1), worker=1, samples=4))
    assert server.ledger()["pending"] == 0
    assert (server.ledger()["applied"], server.version, server.samples) == (3, 1, 8)
    means = [
        (2 * a + 4 * b + 2 * c) / 8
        for a, b, c in zip(*(gradients(server, worker) for worker in range(3)), strict=True)
    ]
    views = server.parameters.trainable_views()
    for entry, view, mean in zip(server.parameters.layout.trainable, views, means, strict=True):
        torch.testing.assert_close(view, entry.view(before) - mean)


def test_a_retired_worker_is_not_waited_for_until_it_is_admitted_again() -> None:
    server = server_of(network(), workers=2, rounds=True)
    server.push(Update(gradients(server), worker=0))
    server.retire(1)
    assert server.version == 1
    server.push(Update(gradients(server), worker=0, sequence=1))
    assert server.version == 2
    server.readmit()
    server.push(Update(gradients(server), worker=0, sequence=2))
    assert (server.version, server.ledger()["pending"]) == (2, 1)
    server.push(Update(gradients(server), worker=1, sequence=0))
    assert (server.version, server.ledger()["pending"]) == (3, 0)


def test_a_round_of_rejected_steps_is_no_new_version() -> None:
    server = server_of(network(), workers=2, rounds=True)
    for worker in range(2):
        server.push(Update([], worker=worker, rejected="non-finite loss"))
    assert server.version == 0
    assert server.ledger()["dropped"] == {"non-finite loss": 2}
    assert adds_up(server)


def test_racing_threads_lose_no_count() -> None:
    server = server_of(network(), sgd(1e-3), workers=4)

    def work(worker: int) -> None:
        for sequence in range(50):
            rejected = "non-finite loss" if sequence % 5 == 0 else ""
            given = [] if rejected else gradients(server, sequence)
            server.push(Update(given, worker=worker, sequence=sequence, samples=2, rejected=rejected))
            server.push(Update(gradients(server), worker=worker, sequence=sequence))

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.ledger() == {
        "pushed": 200,
        "applied": 160,
        "absorbed": 0,
        "pending": 0,
        "dropped": {"non-finite loss": 40},
        "duplicates": 200,
    }
    assert (server.version, server.samples) == (160, 320)


def test_a_rule_that_never_writes_is_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`rule` clip.* never writes the weights; end it with a descent"
    ):
        server_of(network(), clip(1.0))


def test_gradients_that_do_not_fit_are_refused() -> None:
    server = server_of(network())
    before = server.parameters.flat.clone()
    given = gradients(server)
    with pytest.raises(ConfigurationError, match="`gradients` must be 6, one an entry, got 5"):
        server.push(Update(given[:5]))
    with pytest.raises(
        ConfigurationError, match=r"gradient of '0.weight' must have its shape \(3, 4\), got \(4, 3\)"
    ):
        server.push(Update([torch.zeros(4, 3), *given[1:]], sequence=1))
    with pytest.raises(ConfigurationError, match=r"`entries` \(6,\) are not among the 6"):
        server.push(Update(given[:1], (6,), sequence=2, last=False))
    assert torch.equal(server.parameters.flat, before)


def raising(*times: int) -> Rule:
    """Raises an error at these calls, from 0."""
    calls = itertools.count()

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        if next(calls) in times:
            raise ArithmeticError("of a rule")
        return update

    return Rule("piece", stateless, apply, "raising()")


def test_an_update_that_a_rule_raises_about_is_dropped_and_the_next_is_applied() -> None:
    server = server_of(network(), chain(raising(1), sgd(0.1)))
    server.push(Update(gradients(server), sequence=0))
    with pytest.raises(ArithmeticError):
        server.push(Update(gradients(server), sequence=1))
    assert server.push(Update(gradients(server), sequence=1)).status == "duplicate"
    server.push(Update(gradients(server), sequence=2))
    book = server.ledger()
    assert (book["pushed"], book["applied"], book["pending"], book["dropped"]) == (3, 2, 0, {"error": 1})


def test_a_gradient_that_does_not_fit_is_dropped() -> None:
    server = server_of(network())
    with pytest.raises(ConfigurationError, match="one an entry"):
        server.push(Update([torch.zeros(3)]))
    assert server.ledger()["dropped"] == {"error": 1}
    assert adds_up(server)


def test_a_round_that_a_rule_raises_about_is_over_and_dropped() -> None:
    server = server_of(network(), chain(raising(1), sgd(0.1)), workers=2, rounds=True)
    for sequence in range(3):
        server.push(Update(gradients(server), worker=0, sequence=sequence))
        last = Update(gradients(server), worker=1, sequence=sequence)
        if sequence == 1:
            with pytest.raises(ArithmeticError):
                server.push(last)
        else:
            server.push(last)
        assert not server.awaits_round(0)
    book = server.ledger()
    assert (book["pushed"], book["applied"], book["pending"], book["dropped"]) == (6, 4, 0, {"error": 2})
    assert server.version == 2


def test_a_life_that_is_announced_fences_the_earlier_one_at_once() -> None:
    server = server_of(network())
    server.push(Update(gradients(server), sequence=0))
    assert server.begin_life(0) == 1
    assert server.push(Update(gradients(server), sequence=1)).status == "duplicate"
    assert server.push(Update(gradients(server), sequence=0, incarnation=1)).status == "applied"
    assert server.begin_life(0) == 2

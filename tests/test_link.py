"""A worker's line to the server: what is in flight, what is flushed, what is compressed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from freewheel.exchanges import Accruing, Exchange, Fresh, Local
from freewheel.link import KEPT, Link, Outgoing, received, stamped
from freewheel.params import Parameters
from freewheel.rules import eight_bit, finite, sgd, top_k
from freewheel.server import Receipt
from freewheel.tasks import WorkerContext
from freewheel.update import Update


class Line:
    """A link with the server left out: what it sends, and when it pulls."""

    def __init__(
        self, exchange: Any = Fresh, in_flight: int = 0, rule: Any = None, norm: bool = False
    ) -> None:
        module = nn.Sequential(nn.Linear(2, 1), *([nn.BatchNorm1d(1)] if norm else []))
        parameters = Parameters(module)
        replica, weights, statistics = parameters.replica(module, parameters.flat.clone())
        entries = parameters.layout.trainable
        flat = parameters.flat
        self.local = Local(flat, entries, [entry.view(flat) for entry in entries])
        shared = parameters.statistics
        self.context = WorkerContext(0, 0, replica, weights, statistics, shared, self.send)
        self.sent: list[Update] = []
        self.at_once: list[Update] = []
        self.pulls = 0
        made: Exchange = exchange(self.local)
        outgoing = None if rule is None else Outgoing(rule, self.local, seed=0)
        self.link = Link(made, self.context, self.pull, self.send, self.send_now, outgoing, in_flight)
        self.context.deliver = self.link.deliver

    def pull(self, target: Tensor) -> tuple[int, ...]:
        self.pulls += 1
        return (self.pulls, 10 * self.pulls)

    def send(self, update: Update) -> Receipt:
        self.sent.append(update)
        return Receipt("applied", len(self.sent))

    def send_now(self, update: Update) -> Receipt:
        self.at_once.append(update)
        return Receipt("applied", 0)

    def step(self, scale: float = 1.0) -> Receipt | None:
        self.link.begin()
        self.context.samples = 1
        given = [torch.full(view.shape, scale) for view in self.local.weights]
        self.context.push_gradients(list(given))
        self.context.sequence += 1
        return self.context.receipt


def first(update: Update) -> float:
    gradient = update.gradients[0]
    assert gradient is not None
    return float(gradient.flatten()[0])


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_a_push_is_that_many_steps_late(depth: int) -> None:
    line = Line(in_flight=depth)
    for number in range(6):
        receipt = line.step(float(number))
        assert (receipt is KEPT) == (number < depth)
        assert [first(update) for update in line.sent] == list(range(number + 1 - depth))
    assert line.link.flush(final=True) == (depth > 0)
    assert [first(update) for update in line.at_once] == list(range(6 - depth, 6))
    assert [update.sequence for update in line.sent + line.at_once] == list(range(6))


def test_a_push_is_late_by_steps_and_not_by_pushes() -> None:
    """One that comes every third step is gone before the next is made."""
    line = Line(lambda local: Accruing(local, 3, 1, None), in_flight=1)
    lengths = []
    for _ in range(8):
        line.step()
        lengths.append(len(line.sent))
    assert lengths == [0, 1, 1, 1, 2, 2, 2, 3]


def test_a_push_in_flight_keeps_the_version_and_the_statistics_of_its_step() -> None:
    line = Line(in_flight=1, norm=True)
    for number in range(3):
        line.context.statistics.fill_(float(number))
        line.step()
    assert [update.version for update in line.sent] == [1, 2]
    assert [update.buffers.tolist() for update in line.sent if update.buffers is not None] == [
        [float(number)] * line.context.statistics.numel() for number in range(2)
    ]


def test_only_the_end_of_the_run_flushes_what_is_in_flight() -> None:
    line = Line(in_flight=2)
    line.step()
    assert not line.link.flush(final=False)
    assert line.at_once == []
    assert line.link.flush(final=True)
    assert not line.link.flush(final=True)


def test_a_kept_gradient_is_booked_as_kept() -> None:
    line = Line(lambda local: Accruing(local, 2, 2, sgd(0.1)))
    receipts = [line.step() for _ in range(4)]
    assert [receipt is KEPT for receipt in receipts] == [False, True, False, True]
    assert line.pulls == 2
    assert line.link.flush(final=True)
    assert [update.sequence for update in line.sent + line.at_once] == [0, 1, 2]


def test_a_pull_sets_the_version_of_every_shard() -> None:
    line = Line()
    line.step()
    assert (line.context.version, line.context.versions) == (1, (1, 10))
    received((7,), line.context)
    assert (line.context.version, line.context.versions) == (7, ())


def test_a_stamp_is_the_worker_its_version_and_its_statistics() -> None:
    line = Line(norm=True)
    received((3, 4), line.context)
    update = stamped(Update([]), line.context)
    assert (update.worker, update.version, update.versions) == (0, 3, (3, 4))
    assert update.buffers is line.context.statistics
    assert stamped(Update([]), Line().context).buffers is None


def test_what_is_sent_is_compressed_with_a_state_of_its_own() -> None:
    """Error feedback: what the first push leaves out comes with the second."""
    line = Line(rule=top_k(0.5))
    for view_scale in (1.0, 2.0):
        line.step(view_scale)
    assert [update.wire_bytes for update in line.sent] == [2 * 8, 2 * 8]
    totals = [sum(float(g.sum()) for g in update.gradients if g is not None) for update in line.sent]
    assert totals == [2.0, 5.0]  # of three ones two are sent; then two twos, one of them with what was left


def test_what_compression_draws_depends_on_the_seed_and_the_worker_alone() -> None:
    parameters = Parameters(nn.Linear(64, 64))
    local = Local(parameters.flat, parameters.layout.trainable, parameters.trainable_views())

    def draw(seed: int, worker: int) -> list[float]:
        local.worker = worker
        torch.manual_seed(seed + worker)  # of which it takes nothing
        given: list[Tensor | None] = [
            torch.linspace(0.0, 1.0, 4096).view(64, 64),
            torch.linspace(0.0, 2.0, 64),
        ]
        sent = Outgoing(eight_bit(64), local, seed).apply(Update(given))
        return [
            value
            for gradient in sent.gradients
            if gradient is not None
            for value in gradient.flatten().tolist()
        ]

    reference = draw(3, 1)
    assert draw(3, 1) == reference
    assert reference not in (draw(3, 2), draw(4, 1), draw(1, 3))


def test_what_a_rule_of_the_worker_drops_is_sent_as_rejected_for_the_book() -> None:
    line = Line(rule=finite())
    line.step(float("nan"))
    line.step(1.0)
    assert [(update.rejected, len(update.gradients)) for update in line.sent] == [("non-finite", 0), ("", 2)]

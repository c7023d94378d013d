"""A worker's mailbox: what is written is what is read, by way of a message without tensors."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor, nn

from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.shared import Arena
from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.update import Update


def mailbox(pulled: bool = False) -> Mailbox:
    parameters = Parameters(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), channels_last=True)
    return Mailbox.within(Arena(), parameters, 2, pulled)[1]


def gradients() -> list[Tensor | None]:
    return [torch.randn(3, 2, 3, 3), torch.randn(3), torch.randn(3), torch.randn(3)]


def posted(box: Mailbox, update: Update) -> Update:
    push = pickle.loads(pickle.dumps(box.write(update, now=False)))
    assert push.update.gradients == []
    result = box.read(push)
    assert isinstance(result, Update)
    return result


def test_a_whole_update_arrives() -> None:
    sent = gradients()
    result = posted(mailbox(), Update(list(sent), version=3, worker=1, sequence=4, samples=5, wire_bytes=7))
    for ours, theirs in zip(result.gradients, sent, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    assert (result.version, result.worker, result.sequence, result.samples) == (3, 1, 4, 5)
    assert result.wire_bytes == 7
    assert result.buffers is None
    first = result.gradients[0]
    assert first is not None
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_entries_without_a_gradient_stay_without() -> None:
    sent = gradients()
    sent[1] = None
    result = posted(mailbox(), Update(list(sent)))
    assert [gradient is None for gradient in result.gradients] == [False, True, False, False]
    assert torch.equal(result.gradients[2], sent[2])  # type: ignore[arg-type]


def test_a_step_that_is_given_up_has_no_gradients() -> None:
    result = posted(mailbox(), Update([], rejected="non-finite loss"))
    assert (result.gradients, result.rejected) == ([], "non-finite loss")


def test_pieces_of_a_step_do_not_overwrite_each_other() -> None:
    box, (first, _, third, _) = mailbox(), gradients()
    one = posted(box, Update([first], (0,), last=False))
    other = posted(box, Update([third], (2,), last=False))
    assert torch.equal(one.gradients[0], first)  # type: ignore[arg-type]
    assert torch.equal(other.gradients[0], third)  # type: ignore[arg-type]


def test_statistics_and_pulled_weights_travel_too() -> None:
    box, buffers = mailbox(pulled=True), torch.arange(32.0)
    pulled = [torch.full_like(gradient, 2.0) for gradient in gradients() if gradient is not None]
    result = posted(box, Update(gradients(), buffers=buffers, pulled=pulled))
    assert torch.equal(result.buffers, buffers)  # type: ignore[arg-type]
    assert result.pulled is not None
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(result.pulled, pulled, strict=True))


def test_expanded_gradients_are_written_out() -> None:
    sent = gradients()
    sent[0] = torch.ones(()).expand(3, 2, 3, 3)
    result = posted(mailbox(), Update(list(sent)))
    assert torch.equal(result.gradients[0], torch.ones(3, 2, 3, 3))  # type: ignore[arg-type]


def test_a_gradient_of_another_shape_is_refused() -> None:
    sent = gradients()
    sent[1] = torch.ones(1)
    with pytest.raises(
        ConfigurationError, match=r"gradient of '0.bias' must have its shape \(3,\), got \(1,\)"
    ):
        mailbox().write(Update(list(sent)), now=False)

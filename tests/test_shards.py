"""Shards: every trainable element lies in one of them, and what they see is the weights' own memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError
from freewheel.params import Parameters
from freewheel.shards import Shard, check_shards, cut


def frozen_in_between() -> nn.Module:
    module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2))
    module[1].requires_grad_(False)
    return module


def strided() -> nn.Module:
    module = nn.Linear(6, 4)
    module.weight = nn.Parameter(torch.randn(6, 4).T)
    return module


MODULES: dict[str, Any] = {
    "linear": lambda: nn.Linear(3, 2),
    "frozen in between": frozen_in_between,
    "strided": strided,
    "convolution": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    "scalar": lambda: nn.PReLU(1),
}


def parameters_of(name: str) -> Parameters:
    torch.manual_seed(0)
    return Parameters(MODULES[name](), channels_last=name == "convolution")


def total(parameters: Parameters) -> int:
    return sum(entry.numel for entry in parameters.layout.trainable)


def counts(parameters: Parameters) -> list[int]:
    size = total(parameters)
    return sorted({count for count in (1, 2, 3, 7, size - 1, size) if 1 <= count <= size})


@pytest.mark.parametrize("name", MODULES)
def test_every_trainable_element_lies_in_one_shard(name: str) -> None:
    parameters = parameters_of(name)
    for count in counts(parameters):
        parameters.flat.zero_()
        shards = cut(parameters, count, workers=1)
        for shard in shards:
            for piece in shard.pieces:
                piece.weight(parameters.flat).add_(1)
        for entry in parameters.layout.entries:
            assert torch.all(entry.view(parameters.flat) == float(entry.trainable))
        assert [shard.index for shard in shards] == list(range(count))


@pytest.mark.parametrize("name", MODULES)
def test_shards_are_equally_long(name: str) -> None:
    parameters = parameters_of(name)
    for count in counts(parameters):
        lengths = [shard.numel for shard in cut(parameters, count, workers=1)]
        assert sum(lengths) == total(parameters)
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("name", MODULES)
def test_spans_hold_what_the_pieces_are_of_and_do_not_overlap(name: str) -> None:
    parameters = parameters_of(name)
    for count in counts(parameters):
        parameters.flat.zero_()
        end = 0
        for number, shard in enumerate(cut(parameters, count, workers=1), 1):
            assert shard.span.start >= end
            end = shard.span.stop
            for piece in shard.pieces:
                piece.weight(parameters.flat).fill_(number)
            inside = parameters.flat[shard.span]
            assert int((inside == number).sum()) == shard.numel == int((parameters.flat == number).sum())


@pytest.mark.parametrize("name", MODULES)
def test_a_piece_of_a_gradient_is_its_memory_in_the_order_of_the_weights(name: str) -> None:
    """Element by element beside the weights, whatever their strides."""
    parameters = parameters_of(name)
    views = parameters.trainable_views()
    given: list[Tensor | None] = [view.clone(memory_format=torch.preserve_format) for view in views]
    assert [view.stride() for view in views] == [g.stride() for g in given if g is not None]
    for count in counts(parameters):
        for shard in cut(parameters, count, workers=1):
            for piece, gradient in zip(shard.pieces, shard.cut(given), strict=True):
                assert gradient is not None
                weight = piece.weight(parameters.flat)
                assert torch.equal(gradient, weight)
                assert gradient.numel() == piece.stop - piece.start
                original = given[piece.position]
                assert original is not None
                assert gradient.untyped_storage().data_ptr() == original.untyped_storage().data_ptr()


def test_a_cut_gradient_that_is_written_to_is_the_gradient() -> None:
    parameters = parameters_of("strided")
    given: list[Tensor | None] = [torch.zeros_like(view) for view in parameters.trainable_views()]
    for shard in cut(parameters, 5, workers=1):
        for piece in shard.cut(given):
            assert piece is not None
            piece.add_(1)
    assert all(torch.all(gradient == 1) for gradient in given if gradient is not None)


def test_a_piece_of_no_gradient_is_none() -> None:
    parameters = parameters_of("linear")
    (first, second) = cut(parameters, 2, workers=1)
    given: list[Tensor | None] = [None, torch.zeros(2)]
    assert [gradient is None for gradient in first.cut(given)] == [True]
    assert [gradient is None for gradient in second.cut(given)] == [True, False]


def test_whole_entries_keep_their_shape() -> None:
    parameters = parameters_of("convolution")
    (shard,) = cut(parameters, 1, workers=1)
    assert [piece.weight(parameters.flat).shape for piece in shard.pieces] == [
        view.shape for view in parameters.trainable_views()
    ]
    assert all(piece.whole for piece in shard.pieces)


def test_the_version_is_the_sum_over_the_workers() -> None:
    shard = Shard(0, (), slice(0, 0), [3, 0, 4])
    assert shard.version == 7
    assert cut(parameters_of("linear"), 2, workers=5)[1].applied == [0] * 5


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "`shards` must be a whole number >= 1, got 0; 1 is one server"),
        (-2, "got -2"),
        (2.0, "got 2.0"),
        (True, "got True"),
        ("2", "got '2'"),
        (9, "`shards` is 9, more than the 8 trainable weights; use at most 8"),
    ],
)
def test_numbers_of_shards_that_cannot_be_are_refused(count: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_shards(count, 8)
    with pytest.raises(ConfigurationError, match=message):
        cut(parameters_of("linear"), count, workers=1)

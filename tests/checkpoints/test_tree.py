"""Trees: whatever a run's state is made of comes back with its types, values and memory order."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from freewheel.checkpoints.tree import copied, flatten, unflatten
from freewheel.errors import CheckpointError


def there_and_back(tree: Any) -> Any:
    plain, tensors = flatten(copied(tree))
    return unflatten(json.loads(json.dumps(plain)), tensors)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        {"a": [1, 2.5, True, None, "x"], "b": {"c": []}},
        (1, (2, [3, (4,)])),
        {0: "int keys", 5: {}},
        {(): 1, (0, 2): {"deep": (1,)}},
        {"$tensor": "no tensor", "$tuple": [1]},
        {"nested": {"$items": 3}},
        0.1 + 0.2,
        1e-308,
        2**70,
        {},
    ],
)
def test_plain_values_come_back_as_they_were(tree: Any) -> None:
    back = there_and_back(tree)
    assert back == tree
    assert type(back) is type(tree)


def test_numbers_that_are_not_finite_come_back() -> None:
    nan, infinity, negative = there_and_back([math.nan, math.inf, -0.0])
    assert math.isnan(nan)
    assert infinity == math.inf
    assert math.copysign(1, negative) == -1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.tensor(7),
        torch.zeros(0),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([True, False]),
        torch.randn(3, dtype=torch.float64),
        torch.tensor([math.nan, math.inf, -0.0]),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 6).t(),
        torch.randn(2, 3, 4).permute(2, 0, 1),
        torch.randn(3, 4, dtype=torch.complex64),
        torch.randn(3, 4, dtype=torch.complex128).t(),
        torch.tensor(1j, dtype=torch.complex128),
    ],
)
def test_tensors_come_back_bit_for_bit_in_their_memory_order(tensor: Tensor) -> None:
    back = there_and_back({"list": [tensor]})["list"][0]
    assert back.dtype == tensor.dtype
    assert back.stride() == tensor.stride()
    assert torch.equal(
        back.contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)
    )


def test_an_expanded_tensor_comes_back_with_memory_for_every_element() -> None:
    back = there_and_back(torch.ones(1, 3).expand(4, 3))
    assert back.is_contiguous()
    assert torch.equal(back, torch.ones(4, 3))


def test_a_copy_does_not_change_with_the_original() -> None:
    tree = {"weights": torch.zeros(2), "slots": [{"pushed": 1}]}
    copy = copied(tree)
    tree["weights"] += 1  # type: ignore[operator]
    tree["slots"][0]["pushed"] = 2  # type: ignore[index]
    assert copy["weights"].tolist() == [0, 0]
    assert copy["slots"] == [{"pushed": 1}]


def test_what_no_checkpoint_can_hold_is_named() -> None:
    with pytest.raises(CheckpointError, match="source/carries/0 is a object"):
        flatten(copied({"source": {"carries": [object()]}}))


def test_a_missing_tensor_is_named() -> None:
    plain, tensors = flatten({"weights": torch.zeros(2)})
    tensors.clear()
    with pytest.raises(CheckpointError, match="'weights' is missing"):
        unflatten(plain, tensors)

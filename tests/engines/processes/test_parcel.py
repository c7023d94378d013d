"""What worker processes are given: tensors and large arrays are shared, everything else is theirs."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from freewheel.engines.processes.parcel import packed, unpacked
from freewheel.engines.processes.shared import Arena
from freewheel.errors import ConfigurationError


def sent(contents: dict[str, Any], arena: Arena | None = None) -> dict[str, Any]:
    arena = Arena() if arena is None else arena
    parcel = packed(contents, arena)
    return unpacked(parcel, Arena.attached([os.dup(fd) for fd in arena.descriptors]))


def test_tensors_in_the_arena_are_the_same_memory() -> None:
    arena = Arena()
    [flat] = arena.zeros((4,))
    result = sent({"flat": flat, "part": flat[1:3]}, arena)
    result["flat"].fill_(2.0)
    assert flat.tolist() == [2.0] * 4
    assert result["part"].tolist() == [2.0, 2.0]


def test_the_same_tensor_stays_the_same_object() -> None:
    tensor = torch.ones(3)
    result = sent({"first": [tensor], "again": (tensor, torch.ones(3))})
    assert result["first"][0] is result["again"][0]
    assert result["again"][0] is not result["again"][1]
    assert torch.equal(result["again"][1], torch.ones(3))


def test_a_tensor_that_grows_does_not_grow_over_its_neighbour() -> None:
    result = sent({"empty": torch.zeros(0, dtype=torch.int64), "other": torch.ones(4)})
    result["empty"].resize_(2).zero_()
    assert result["other"].tolist() == [1.0] * 4


def test_workers_share_tensors_and_arrays() -> None:
    arena = Arena()
    contents = {"tensor": torch.zeros(3), "array": np.zeros(5000), "small": np.zeros(2)}
    parcel = packed(contents, arena)
    first, second = (
        unpacked(parcel, Arena.attached([os.dup(fd) for fd in arena.descriptors])) for _ in range(2)
    )
    for name in contents:
        first[name][0] = 7
    assert (second["tensor"][0], second["array"][0], second["small"][0]) == (7, 7, 0)


def test_frozen_arrays_stay_frozen() -> None:
    array = np.arange(5000)
    array.flags.writeable = False
    result = sent({"array": array})["array"]
    assert np.array_equal(result, array)
    assert not result.flags.writeable


def test_functions_and_classes_go_by_value() -> None:
    scale = torch.tensor(3.0)

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.tied = self.weight

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return (value * self.weight).sum() * scale

    result = sent({"module": Local(), "double": lambda value: 2 * value})
    module = result["module"]
    assert module(torch.ones(2)).item() == 6
    assert module.tied is module.weight
    assert module.weight.requires_grad
    assert result["double"](4) == 8


def test_other_tensors_are_pickled() -> None:
    tensors = {
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "leaf": torch.ones(2, requires_grad=True),
    }
    result = sent(tensors)
    assert torch.equal(result["sparse"].to_dense(), torch.eye(3))
    assert torch.equal(result["conjugate"], tensors["conjugate"])
    assert result["leaf"].requires_grad


def test_what_cannot_be_sent_is_named() -> None:
    with pytest.raises(ConfigurationError, match="`data` cannot be sent to the worker processes"):
        packed({"module": nn.Linear(2, 2), "source": [threading.Lock()]}, Arena())

"""Memory that processes share: tensors keep their values, shapes and overlaps, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from freewheel.engines.processes.shared import Arena, SharedCounts


def twin(arena: Arena) -> Arena:
    return Arena.attached([os.dup(descriptor) for descriptor in arena.descriptors])


def found(arena: Arena, tensor: Tensor) -> Tensor:
    """The tensor as another process sees it: mapped once more."""
    address = arena.address(tensor)
    assert address is not None
    return twin(arena).tensor(address)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).view(3, 4),
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(24, dtype=torch.int64).view(2, 3, 4)[:, 1],
        torch.tensor(7.5, dtype=torch.float64),
        torch.tensor([], dtype=torch.float32),
        torch.tensor([True, False]),
        torch.ones(3, dtype=torch.bfloat16)[1:],
        torch.ones(()).expand(2, 5),
        torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}",
)
def test_tensors_keep_values_shapes_and_strides(tensor: Tensor) -> None:
    arena = Arena()
    [first, placed] = arena.place([torch.ones(5), tensor])
    seen = found(arena, placed)
    for result in (placed, seen):
        assert torch.equal(result, tensor)
        assert (result.dtype, result.stride()) == (tensor.dtype, tensor.stride())
    assert torch.equal(first, torch.ones(5))
    arena.close()


def test_what_one_process_writes_the_other_reads() -> None:
    arena = Arena()
    [_, weights] = arena.zeros((3,), (2, 2))
    found(arena, weights).fill_(4.0)
    assert weights.tolist() == [[4.0, 4.0], [4.0, 4.0]]
    arena.close()


def test_tensors_that_share_memory_still_do() -> None:
    tokens = torch.arange(10)
    arena = Arena()
    inputs, targets = arena.place([tokens[2:8], tokens[3:9]])
    inputs[1] = 100
    assert targets.tolist() == [100, 4, 5, 6, 7, 8]
    assert tokens[3] == 3
    arena.close()


def test_a_tensor_elsewhere_has_no_address() -> None:
    arena = Arena()
    assert arena.address(torch.ones(3)) is None
    arena.close()


def test_tensors_share_no_version_counter() -> None:
    """Autograd would raise as soon as another worker writes."""
    arena = Arena()
    [flat] = arena.zeros((8,))
    before = flat._version
    found(arena, flat).add_(1)
    address = arena.address(flat)
    assert address is not None
    arena.tensor(address).add_(1)
    assert flat._version == before
    arena.close()


def test_counts_are_one_a_worker() -> None:
    arena = Arena()
    [cells] = arena.zeros((3, 8), dtype=torch.int64)
    counts = SharedCounts(cells[:, 2])
    counts[1] += 5
    counts[2] = -(2**40)
    assert list(counts) == [0, 5, -(2**40)]
    assert (counts[1], sum(counts)) == (5, 5 - 2**40)
    assert cells[1, 2] == 5
    assert list(pickle.loads(pickle.dumps(counts))) == [0, 5, -(2**40)]
    arena.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_closing_leaves_no_descriptor_once_the_tensors_are_gone() -> None:
    gc.collect()
    before = open_descriptors()
    arena = Arena()
    tensors = arena.place([torch.ones(5)])
    arena.zeros((3,))
    assert open_descriptors() > before
    arena.close()
    assert torch.equal(tensors[0], torch.ones(5))  # lives on as long as anybody has it
    del tensors
    gc.collect()
    assert open_descriptors() == before


def test_nothing_has_a_name() -> None:
    folder = Path("/dev/shm")
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    arena = Arena()
    arena.zeros((1000,))
    assert (set(os.listdir(folder)) if folder.is_dir() else set()) <= before
    arena.close()


def test_without_memfd_an_unlinked_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    arena = Arena()
    [weights] = arena.place([torch.arange(5.0)])
    assert found(arena, weights).tolist() == [0, 1, 2, 3, 4]
    assert os.fstat(arena.descriptors[0]).st_nlink == 0
    arena.close()

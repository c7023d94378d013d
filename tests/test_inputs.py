"""From what users have to sources."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from freewheel.errors import ConfigurationError, DataError
from freewheel.inputs import source_of
from freewheel.sources import Indexed, Sequences, Source, Streamed

SIZE = 10


def pair() -> tuple[Tensor, Tensor]:
    return torch.arange(float(SIZE)).view(SIZE, 1), torch.arange(SIZE)


class Rows(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index


class Endless(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return iter([(torch.tensor([float(i)]), i) for i in range(SIZE)])


class Fetching:
    """As the library's own data: whole batches by their indices."""

    def __len__(self) -> int:
        return SIZE

    def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return indices.view(-1, 1).float(), indices


class Batches:
    """Any object that can be iterated again and again."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(pair()[0][:5], pair()[1][:5]), (pair()[0][5:], pair()[1][5:])])


KINDS: dict[str, tuple[Any, type[Source]]] = {
    "tuple": (pair(), Indexed),
    "list": (list(pair()), Indexed),
    "tensor data set": (TensorDataset(*pair()), Indexed),
    "data set": (Rows(), Indexed),
    "rows": ([(torch.tensor([float(i)]), i) for i in range(SIZE)], Indexed),
    "fetching": (Fetching(), Indexed),
    "loader": (DataLoader(Rows(), 4), Indexed),
    "iterable data set": (Endless(), Streamed),
    "iterable": (Batches(), Streamed),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_all_kinds_give_every_example_once(kind: str, shuffle: bool) -> None:
    data, expected = KINDS[kind]
    source = source_of(data, 4, 0, shuffle=shuffle)
    assert isinstance(source, expected)
    source.open(0, source.batches)
    seen = []
    while (lease := source.take()) is not None:
        inputs, targets = lease.batch
        assert torch.equal(inputs[:, 0], targets.float())
        assert lease.samples == len(targets)
        seen += targets.tolist()
    assert sorted(seen) == list(range(SIZE))
    if not shuffle:
        assert seen == list(range(SIZE))


def test_a_source_is_used_as_it_is() -> None:
    source = source_of(pair(), 3, 0)
    assert source_of(source, 99, 1) is source


def test_a_tensor_data_set_of_three_gives_three() -> None:
    source = source_of(TensorDataset(*pair(), torch.ones(SIZE)), 4, 0)
    assert [len(column) for column in source.first()] == [4, 4, 4]


def test_an_iterable_tells_its_batch_size() -> None:
    assert source_of(Batches(), 64, 0).batch_size == 5


def test_tokens_become_sequences() -> None:
    source = source_of(torch.arange(50), 2, 0, bptt=5, streams=3)
    assert isinstance(source, Sequences)
    assert (source.streams, source.batch_size) == (3, 2)


def test_inputs_that_need_gradients_do_not_keep_a_graph() -> None:
    inputs = torch.randn(SIZE, 2, requires_grad=True)
    assert not source_of((inputs, pair()[1]), 4, 0).first()[0].requires_grad


def test_batches_larger_than_the_data_are_one_batch() -> None:
    source = source_of(pair(), 1000, 0)
    assert (source.batches, source.samples) == (1, SIZE)


def test_large_values_that_overflow_their_sum_are_finite() -> None:
    huge = torch.full((SIZE, 2), 3e38)
    assert source_of((huge, pair()[1]), 4, 0).samples == SIZE


def with_bad_row(value: float, row: int = 6) -> Tensor:
    inputs = torch.zeros(SIZE, 3)
    inputs[row, 1] = value
    return inputs


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((with_bad_row(torch.nan), pair()[1]), "`data` inputs .*NaN.* 1 of 10 rows, the first is row 6"),
        ((with_bad_row(-torch.inf), pair()[1]), "`data` inputs .*first is row 6; clean them"),
        ((pair()[0], with_bad_row(torch.nan, 2)), "`data` targets .*first is row 2"),
        ((pair()[0], pair()[1][:7]), r"shapes \(10, 1\) and \(7,\); their first dimensions must be equal"),
        ((torch.tensor(1.0), pair()[1]), "first dimensions must be equal"),
        ((torch.zeros(0, 3), torch.zeros(0)), "`data` has no examples; give at least one"),
        ([], "`data` has no examples"),
        (iter([]), "`data` gave no batch"),
        (TensorDataset(torch.zeros(0, 1)), "`data` has no examples"),
    ],
)
def test_bad_data_is_refused(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source_of(data, 4, 0)


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (None, "got NoneType"),
        ("images", "got str"),
        (3, "got int"),
        ({"x": pair()[0]}, "got dict"),
        ({1, 2}, "got set"),
        (b"bytes", "got bytes"),
        (pair()[0], r"got a tensor of shape \(10, 1\) and torch.float32"),
        ((pair()[0],), "got a tuple of 1: Tensor"),
        ((pair()[0].numpy(), pair()[1].numpy()), "got a tuple of 2: ndarray, ndarray; .*from_numpy"),
        ((*pair(), pair()[1]), "got a tuple of 3: Tensor, Tensor, Tensor"),
    ],
)
def test_what_is_no_data_is_refused_with_the_kinds_that_are(data: Any, got: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"`data` must be a pair of tensors.*Dataset.*; {got}"):
        source_of(data, 4, 0)


@pytest.mark.parametrize(
    "data", [pair(), torch.zeros(9), torch.zeros(3, 3, dtype=torch.int64), "text", Rows()]
)
def test_with_bptt_only_tokens_are_data(data: Any) -> None:
    with pytest.raises(
        ConfigurationError, match="with `bptt`, `data` must be a 1-D int64 tensor of tokens; got"
    ):
        source_of(data, 4, 0, bptt=5)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "16", None])
@pytest.mark.parametrize("kind", ["tuple", "data set", "iterable data set", "iterable"])
def test_a_batch_of_nothing_is_refused_for_all_kinds(kind: str, batch_size: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=f"`batch_size` must be a whole number >= 1, got {batch_size!r}"
    ):
        source_of(KINDS[kind][0], batch_size, 0)

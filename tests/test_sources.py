"""Sources: every example once an epoch, whoever takes it; given-back leases are taken again."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from freewheel.errors import ConfigurationError, DataError
from freewheel.sources import (
    Indexed,
    Lease,
    Sequences,
    Source,
    Streamed,
    count_samples,
    loader_source,
    tensors,
)

SIZE = 23


def numbers(indices: Tensor) -> list[int]:
    return [int(index) for index in indices]


def indexed(**settings: Any) -> Indexed:
    return Indexed(numbers, **{"size": SIZE, "batch_size": 5, **settings})


class Numbers(Dataset[dict[str, Tensor]]):
    """A map-style data set of dictionaries."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([float(index), 0.0]), "y": torch.tensor(index)}


class Stream(IterableDataset[Tensor]):
    """An iterable data set without a length."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(SIZE))


def streamed(**settings: Any) -> Streamed:
    batches = [list(range(SIZE))[start : start + 5] for start in range(0, SIZE, 5)]
    return Streamed(lambda: iter(batches), len, **settings)


SOURCES: dict[str, Callable[[], Source]] = {
    "indexed": indexed,
    "in order": lambda: indexed(shuffle=False),
    "streamed": streamed,
    "streamed, known length": lambda: streamed(length=5, batch_size=5, samples=SIZE),
}


def drain(source: Source) -> list[Lease]:
    leases = []
    while (lease := source.take()) is not None:
        leases.append(lease)
        source.acknowledge(lease)
    return leases


def epochs(source: Source, count: int) -> list[list[int]]:
    """The examples of several epochs, in the order taken."""
    result, first = [], 0
    for _ in range(count):
        source.open(first, None if source.batches is None else first + source.batches)
        leases = drain(source)
        result.append([index for lease in leases for index in lease.batch])
        first += len(leases)
    return result


@pytest.mark.parametrize("name", SOURCES)
def test_every_example_once_an_epoch_and_a_short_last_batch(name: str) -> None:
    source = SOURCES[name]()
    for epoch in epochs(source, 3):
        assert sorted(epoch) == list(range(SIZE))
    source = SOURCES[name]()
    source.open(0, source.batches)
    assert [lease.samples for lease in drain(source)] == [5, 5, 5, 5, 3]


@pytest.mark.parametrize("name", SOURCES)
def test_every_example_once_with_several_threads_taking(name: str) -> None:
    source = SOURCES[name]()
    source.lock = threading.Lock()
    first = 0
    for _ in range(3):
        taken: list[Lease] = []
        source.open(first, None if source.batches is None else first + source.batches)
        crew = [threading.Thread(target=lambda: taken.extend(drain(source))) for _ in range(6)]  # noqa: B023
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        assert sorted(index for lease in taken for index in lease.batch) == list(range(SIZE))
        assert sorted(lease.number for lease in taken) == list(range(first, first + 5))
        first += len(taken)


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_given_back_is_taken_again_and_nothing_else_is_repeated(name: str) -> None:
    source = SOURCES[name]()
    source.open(0, source.batches)
    kept = []
    for turn in range(8):
        lease = source.take()
        if lease is None:
            break
        if turn in (0, 2, 3):
            source.give_back(lease)
        else:
            kept.append(lease)
    kept += drain(source)
    assert sorted(index for lease in kept for index in lease.batch) == list(range(SIZE))
    assert source.take() is None


@pytest.mark.parametrize("name", SOURCES)
def test_a_number_that_is_put_back_can_be_asked_for_again_and_is_not_taken_besides(name: str) -> None:
    source = SOURCES[name]()
    source.open(0, source.batches)
    first, second = source.take_number(0), source.take_number(1)
    assert first is not None
    assert second is not None
    source.put_back(first)
    again = source.take_number(0)
    assert again is not None
    assert again.batch == first.batch
    assert source.state()["returned"] == []


def test_a_batch_that_cannot_be_read_is_taken_again() -> None:
    calls = iter(range(100))

    def fetch(indices: Tensor) -> list[int]:
        if next(calls) == 1:
            raise OSError("the disk is gone")
        return numbers(indices)

    source = Indexed(fetch, SIZE, 5)
    source.open(0, source.batches)
    assert source.take() is not None
    with pytest.raises(OSError, match="the disk is gone"):
        source.take()
    assert not source.broken
    assert [lease.number for lease in drain(source)] == [1, 2, 3, 4]


def test_a_stream_that_raises_is_broken_and_gives_nothing_more() -> None:
    def batches() -> Iterator[list[int]]:
        yield [0]
        raise OSError("the line is dead")

    source = Streamed(batches, len, length=1, batch_size=1)  # at the end of the iterator another would begin
    source.open(0, 5)
    assert source.take() is not None
    with pytest.raises(OSError, match="the line is dead"):
        source.take()
    assert source.broken
    assert source.take() is None


@pytest.mark.parametrize("name", SOURCES)
def test_what_was_given_back_at_the_end_opens_with_the_next_epoch(name: str) -> None:
    source = SOURCES[name]()
    source.open(0, source.batches)
    leases = [lease for lease in (source.take() for _ in range(5)) if lease is not None]
    source.give_back(leases[4])
    source.open(5, None if source.batches is None else 10)
    again = Counter(index for lease in drain(source) for index in lease.batch)
    assert all(again[index] >= 1 for index in leases[4].batch)


def test_several_threads_may_give_back_at_once() -> None:
    source = indexed(size=400, batch_size=1)
    source.open(0, 400)
    kept: list[int] = []

    def work() -> None:
        turn = 0
        while (lease := source.take()) is not None:
            turn += 1
            if turn % 3 == 0:
                source.give_back(lease)
            else:
                kept.extend(lease.batch)

    crew = [threading.Thread(target=work) for _ in range(6)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    kept += [index for lease in drain(source) for index in lease.batch]
    assert sorted(kept) == list(range(400))


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_batch_can_be_seen_without_taking_it(name: str) -> None:
    source = SOURCES[name]()
    seen = source.first()
    source.open(0, source.batches)
    lease = source.take()
    assert lease is not None
    assert lease.batch == seen
    assert lease.number == 0


def test_seed_decides_the_order_and_each_epoch_has_its_own() -> None:
    same, again, other = (epochs(indexed(seed=seed), 2) for seed in (1, 1, 2))
    assert same == again
    assert same[0] != same[1]
    assert same[0] != other[0]
    assert epochs(indexed(shuffle=False), 1) == [list(range(SIZE))]


def test_drop_last_leaves_out_the_short_batch() -> None:
    source = indexed(drop_last=True)
    assert (source.batches, source.samples) == (4, 20)
    for epoch in epochs(source, 2):
        assert len(set(epoch)) == len(epoch) == 20


def test_samples_before_agrees_with_what_was_taken() -> None:
    for source in (indexed(), indexed(drop_last=True), indexed(batch_size=40)):
        assert source.batches is not None
        source.open(0, 3 * source.batches)
        total = 0
        for lease in drain(source):
            assert source.samples_before(lease.number) == total
            total += lease.samples


def test_numbers_can_be_asked_for_in_any_order() -> None:
    for make in (indexed, streamed):
        source, other = make(), make()
        source.open(0, 5)
        other.open(0, 5)
        expected = [source.take_number(number).batch for number in range(5)]  # type: ignore[union-attr]
        for number in (3, 0, 4, 1, 2):
            assert other.take_number(number).batch == expected[number]  # type: ignore[union-attr]
        assert other.take_number(5) is None


def test_a_segment_ends_at_its_limit_and_the_next_goes_on() -> None:
    for source in (indexed(), streamed(), streamed(length=5, batch_size=5)):
        taken: list[int] = []
        for first in (0, 2, 4):
            source.open(first, min(first + 2, 5))
            taken += [index for lease in drain(source) for index in lease.batch]
        assert sorted(taken) == list(range(SIZE))


def test_an_epoch_of_unknown_length_says_when_it_is_over() -> None:
    source, ended = streamed(), []
    for first, limit in ((0, 3), (3, None), (5, 6)):
        source.open(first, limit)
        drain(source)
        ended.append(source.ended)
    assert ended == [False, True, False]


def test_a_generator_gives_one_epoch_and_then_says_so() -> None:
    generator = ([i] for i in range(3))
    source = Streamed(lambda: generator, len)
    source.open(0, None)
    assert len(drain(source)) == 3
    source.open(3, None)
    with pytest.raises(DataError, match="a generator can be read only once"):
        source.take()


def test_a_loader_that_breaks_its_word_about_its_length_ends_and_does_not_hang() -> None:
    source = Streamed(lambda: iter([]), len, length=4, batch_size=2)
    with pytest.raises(DataError, match="gave no batch"):
        source.first()
    short = streamed(length=7, batch_size=5)
    short.open(0, 7)
    assert len(drain(short)) == 5


def test_tensors_of_any_number() -> None:
    columns = (torch.arange(6), torch.arange(12).view(6, 2), torch.arange(6) * 10)
    batch = tensors(*columns)(torch.tensor([4, 1]))
    assert [column.tolist() for column in batch] == [[4, 1], [[8, 9], [2, 3]], [40, 10]]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(4, 2), 4),
        (torch.tensor(1.0), 1),
        ((torch.zeros(3), torch.zeros(3)), 3),
        ({"x": torch.zeros(5, 1), "y": torch.zeros(5)}, 5),
        ({"text": ["a", "b"], "y": torch.zeros(2)}, 2),
        ([{"x": torch.zeros(6)}, torch.zeros(6)], 6),
        ("nothing", 1),
    ],
)
def test_number_of_examples_in_a_batch(batch: Any, count: int) -> None:
    assert count_samples(batch) == count


# --- loaders


def targets(source: Source, count: int = 1) -> list[list[int]]:
    result, first = [], 0
    for _ in range(count):
        source.open(first, None if source.batches is None else first + source.batches)
        leases = drain(source)
        first += len(leases)
        result.append([int(value) for lease in leases for value in _targets(lease.batch)])
    return result


def _targets(batch: Any) -> Tensor:
    found = batch["y"] if isinstance(batch, dict) else batch[-1] if isinstance(batch, list | tuple) else batch
    assert isinstance(found, Tensor)
    return found


def pairs() -> TensorDataset:
    return TensorDataset(torch.randn(SIZE, 2), torch.arange(SIZE))


def test_a_loader_without_shuffling_keeps_its_order() -> None:
    assert targets(loader_source(DataLoader(Numbers(), 4), 0), 2) == [list(range(SIZE))] * 2


def test_a_loader_that_shuffles_is_shuffled_by_the_seed() -> None:
    loader = DataLoader(pairs(), 4, shuffle=True)
    first, again, other = (targets(loader_source(loader, seed), 2) for seed in (0, 0, 1))
    assert first == again
    assert first[0] != first[1]
    assert first != other
    assert sorted(first[0]) == sorted(first[1]) == list(range(SIZE))


def test_drop_last_of_a_loader_is_kept() -> None:
    source = loader_source(DataLoader(Numbers(), 4, drop_last=True), 0)
    assert (source.batches, source.samples) == (5, 20)
    assert targets(source) == [list(range(20))]


def test_a_collate_function_of_ones_own() -> None:
    def collate(items: list[dict[str, Tensor]]) -> dict[str, Any]:
        return {"y": torch.stack([item["y"] for item in items]), "names": [f"n{item['y']}" for item in items]}

    source = loader_source(DataLoader(Numbers(), 4, collate_fn=collate), 0)
    assert source.first()["names"] == ["n0", "n1", "n2", "n3"]
    assert targets(source) == [list(range(SIZE))]


def test_a_loader_with_a_process_of_its_own() -> None:
    source = loader_source(DataLoader(Numbers(), 4, num_workers=1), 0)
    assert isinstance(source, Streamed)
    assert (source.batches, source.samples) == (6, SIZE)
    assert targets(source, 2) == [list(range(SIZE))] * 2


def test_a_loader_over_an_iterable() -> None:
    source = loader_source(DataLoader(Stream(), 4), 0)
    assert (source.batches, source.samples, source.batch_size) == (None, None, 4)
    assert targets(source, 2) == [list(range(SIZE))] * 2


def test_samplers_that_are_no_permutation_are_left_to_the_loader() -> None:
    with_replacement = DataLoader(
        pairs(), 4, sampler=RandomSampler(pairs(), replacement=True, num_samples=10)
    )
    fewer = DataLoader(pairs(), 4, sampler=RandomSampler(pairs(), num_samples=10))
    weighted = DataLoader(pairs(), 4, sampler=WeightedRandomSampler([0.0] * 22 + [1.0], 10))
    for loader in (with_replacement, fewer, weighted):
        source = loader_source(loader, 0)
        assert (source.batches, source.samples) == (3, 10)
        assert len(targets(source)[0]) == 10
    assert targets(loader_source(weighted, 0)) == [[22] * 10]


def test_a_batch_sampler_tells_its_size_by_its_first_batch() -> None:
    loader: DataLoader[Any] = DataLoader(Numbers(), batch_sampler=[[0, 1, 2], [3, 4, 5], [6]])
    source = loader_source(loader, 0)
    assert (source.batches, source.batch_size) == (3, 3)
    assert targets(source, 2) == [list(range(7))] * 2


def test_a_data_set_that_makes_whole_batches() -> None:
    batches = [torch.arange(4), torch.arange(4, 8)]
    source = loader_source(DataLoader(batches, batch_size=None), 0)  # type: ignore[arg-type]
    assert source.batch_size == 4
    assert targets(source, 2) == [list(range(8))] * 2


def test_a_subset_is_read_by_its_own_indices() -> None:
    assert targets(loader_source(DataLoader(Subset(pairs(), [5, 3, 9]), 2), 0)) == [[5, 3, 9]]


# --- sequences


def sequences(streams: int = 2, tokens: int = 61, steps: int = 4, batch_size: int = 3) -> Sequences:
    return Sequences(torch.arange(tokens), steps, batch_size, streams)


def test_targets_are_the_next_tokens_and_every_token_comes_once() -> None:
    source = sequences()
    assert source.samples == 60
    for epoch in range(3):
        source.open(epoch * source.batches, (epoch + 1) * source.batches)
        leases = drain(source)
        assert len(leases) == source.batches == 6
        seen = [int(token) for lease in leases for token in lease.batch[0].flatten()]
        assert sorted(seen) == list(range(60))
        assert all(torch.equal(lease.batch[0] + 1, lease.batch[1]) for lease in leases)
        assert sum(lease.samples for lease in leases) == 60


def test_segments_of_a_group_follow_one_another() -> None:
    source = sequences()
    source.open(0, source.batches)
    last: dict[int, Tensor] = {}
    for lease in drain(source):
        inputs = lease.batch[0]
        if lease.stream in last:
            assert torch.equal(inputs[:, 0], last[lease.stream] + 1)
        last[lease.stream] = inputs[:, -1]
    assert len(last) == 2


def test_hidden_state_stays_with_its_group_and_is_reset_where_an_epoch_begins() -> None:
    source = sequences()
    for epoch in range(2):
        source.open(epoch * source.batches, (epoch + 1) * source.batches)
        steps: Counter[int] = Counter()
        while (lease := source.take()) is not None:
            assert lease.carry is not None
            assert lease.carry.value == ((lease.stream, steps[lease.stream]) if steps[lease.stream] else None)
            steps[lease.stream] += 1
            lease.carry.value = (lease.stream, steps[lease.stream])
            source.acknowledge(lease)
        assert steps == {0: 3, 1: 3}


def test_a_group_is_held_by_one_worker_at_a_time() -> None:
    source = sequences(streams=2)
    source.open(0, None)
    first, second = source.take(), source.take()
    assert first is not None
    assert second is not None
    assert {first.stream, second.stream} == {0, 1}
    assert source.take() is None
    source.acknowledge(second)
    third = source.take()
    assert third is not None
    assert third.stream == second.stream


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_a_fast_worker_does_not_run_into_the_next_epoch(streams: int) -> None:
    source = sequences(streams=streams, tokens=12 * 5 * streams + 1, batch_size=3, steps=4)
    for epoch in range(2):
        source.open(epoch * source.batches, (epoch + 1) * source.batches)
        slow = source.take()  # and holds on to it until the fast one finds nothing more
        taken = drain(source)
        assert slow is not None
        source.acknowledge(slow)
        taken += [slow, *drain(source)]
        seen = Counter(int(token) for lease in taken for token in lease.batch[0].flatten())
        assert set(seen.values()) == {1}
        assert len(seen) == source.samples


def test_a_segment_that_is_given_back_is_taken_again_with_its_state() -> None:
    source = sequences(streams=1)
    source.open(0, source.batches)
    lease = source.take()
    assert lease is not None
    assert lease.carry is not None
    lease.carry.value = "after the first"
    source.acknowledge(lease)
    second = source.take()
    assert second is not None
    source.give_back(second)
    again = source.take()
    assert again is not None
    assert (again.number, again.stream) == (second.number, second.stream)
    assert torch.equal(again.batch[0], second.batch[0])
    assert again.carry is not None
    assert again.carry.value == "after the first"
    source.acknowledge(again)
    assert 2 + len(drain(source)) == source.batches


def test_a_segment_of_a_round_that_is_put_back_is_asked_for_again() -> None:
    source = sequences(streams=2)
    source.open(0, source.batches)
    lease = source.take_number(1)
    assert lease is not None
    source.put_back(lease)
    again = source.take_number(1)
    assert again is not None
    assert (again.stream, again.carry) == (1, lease.carry)
    assert torch.equal(again.batch[0], lease.batch[0])
    assert source.state()["returned"] == []


def test_rounds_give_each_number_its_group() -> None:
    source = sequences(streams=2)
    source.open(0, source.batches)
    for step in range(3):
        for worker in (1, 0):
            lease = source.take_number(2 * step + worker)
            assert lease is not None
            assert lease.stream == worker
            assert int(lease.batch[0][0, 0]) == 30 * worker + 4 * step
            source.acknowledge(lease)
    assert source.take_number(6) is None


def test_reading_from_number_zero_begins_anew() -> None:
    source = sequences(streams=1)
    source.open(0, 2)
    first = [lease.batch[0] for lease in drain(source)]
    source.open(0, 2)
    assert all(torch.equal(a, lease.batch[0]) for a, lease in zip(first, drain(source), strict=True))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tokens": 3}, DataError, "`data` has 3 tokens, too few for 2 x 3 sequences; lower batch_size"),
        ({"steps": 0}, ConfigurationError, "`bptt` must be >= 1, got 0"),
        ({"streams": 0}, ConfigurationError, "`streams` must be >= 1, got 0"),
        ({"batch_size": -1}, ConfigurationError, "`batch_size` must be >= 1, got -1"),
    ],
)
def test_sequences_that_cannot_be_cut_are_refused(
    settings: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sequences(**settings)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": 0}, DataError, "no examples"),
        ({"batch_size": 0}, ConfigurationError, "`batch_size` must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, ConfigurationError, "`batch_size` must be a whole number >= 1, got 2.5"),
        ({"batch_size": 24, "drop_last": True}, DataError, "23 examples, fewer than one batch of 24"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        indexed(**settings)

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from freewheel.data.images import Images, map_images, stratified
from freewheel.errors import ConfigurationError, DataError

MEAN, STD, CLASSES = (0.1, 0.5, 0.9), (0.2, 0.5, 0.3), ("a", "b", "c")


def pixels_and_labels(n: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 256, (n, 3, 5, 7), dtype=torch.uint8), torch.arange(n) % 3


@pytest.fixture
def images() -> Images:
    return Images(*pixels_and_labels(), MEAN, STD, CLASSES)


@pytest.fixture
def on_disk(tmp_path: Path, images: Images) -> Images:
    file = tmp_path / "pixels.npy"
    np.save(file, images.images.numpy())
    return Images(map_images(file), images.labels, MEAN, STD, CLASSES, file=file)


def test_a_pixel_is_normalised_by_its_channel(images: Images) -> None:
    x, y = images.tensors()
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(x.double(), (images.images / 255.0 - mean) / std, rtol=1e-5, atol=1e-5)
    assert x.dtype == torch.float32
    assert torch.equal(y, images.labels)


@pytest.mark.parametrize("name", ["images", "on_disk"])
def test_fetch_indexing_and_tensors_agree_bit_for_bit(name: str, request: pytest.FixtureRequest) -> None:
    data: Images = request.getfixturevalue(name)
    x, y = data.tensors()
    rows = torch.randperm(len(data))[:17]
    batch, labels = data.fetch(rows)
    assert torch.equal(batch, x[rows])
    assert torch.equal(labels, y[rows])
    one, label = data[int(rows[3])]
    assert torch.equal(one, batch[3])
    assert label == int(labels[3])


def test_normalising_leaves_the_bytes_alone(images: Images) -> None:
    before = images.images.clone()
    images.fetch(torch.arange(5))
    images.tensors()
    assert torch.equal(images.images, before)


def test_a_loader_takes_it_as_a_dataset(images: Images) -> None:
    batches = list(DataLoader(images, batch_size=16))
    assert torch.equal(torch.cat([x for x, _ in batches]), images.tensors()[0])
    assert torch.equal(torch.cat([y for _, y in batches]), images.labels)


def test_iterating_ends(images: Images) -> None:
    assert len(list(images)) == 40  # type: ignore[call-overload]


def test_a_copy_of_mapped_images_maps_the_same_file(on_disk: Images) -> None:
    message = pickle.dumps(on_disk)
    assert len(message) < on_disk.images.numel()
    for twin in (pickle.loads(message), copy.deepcopy(on_disk)):
        assert twin.streamed
        assert torch.equal(twin.images, on_disk.images)
        assert torch.equal(twin.fetch(torch.arange(3))[0], on_disk.fetch(torch.arange(3))[0])


def test_a_copy_of_images_in_memory_is_equal(images: Images) -> None:
    twin = pickle.loads(pickle.dumps(images))
    assert torch.equal(twin.tensors()[0], images.tensors()[0])
    assert not twin.streamed


def test_writing_to_mapped_pixels_does_not_reach_the_file(on_disk: Images) -> None:
    assert on_disk.file is not None
    before = on_disk.file.read_bytes()
    on_disk.images.zero_()
    assert on_disk.file.read_bytes() == before


def test_a_subset_keeps_the_proportions() -> None:
    labels = np.repeat(np.array([0, 1, 2]), [50, 30, 20])
    rows = stratified(labels, 11, seed=3)
    # 5.5, 3.3 and 2.2: the one left over goes to the largest remainder.
    assert np.bincount(labels[rows]).tolist() == [6, 3, 2]
    assert len(set(rows.tolist())) == 11
    assert rows.tolist() == sorted(rows.tolist())


def test_a_subset_is_drawn_by_its_seed() -> None:
    labels = np.zeros(100, np.int64)
    assert stratified(labels, 10, 1).tolist() == stratified(labels, 10, 1).tolist()
    assert stratified(labels, 10, 1).tolist() != stratified(labels, 10, 2).tolist()
    # A recorded draw: the embedded sets are made by it, so it must never change.
    assert stratified(labels, 5, 7).tolist() == [26, 37, 49, 78, 91]


def test_the_whole_is_a_subset_of_itself(images: Images) -> None:
    part = images.subset(len(images), seed=5)
    assert torch.equal(part.images, images.images)
    assert torch.equal(part.labels, images.labels)


def test_a_subset_of_mapped_images_is_in_memory(on_disk: Images) -> None:
    part = on_disk.subset(9)
    assert not part.streamed
    assert part.labels.bincount().tolist() == [3, 3, 3]


@pytest.mark.parametrize("n", [0, -1, 41])
def test_a_subset_of_impossible_size_is_refused(images: Images, n: int) -> None:
    with pytest.raises(ConfigurationError, match=f"`n` must be from 1 to 40.*got {n}"):
        images.subset(n)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": torch.zeros(40, 3, 5, 7)}, "`images` must be uint8"),
        ({"images": torch.zeros(40, 5, 7, dtype=torch.uint8)}, "`images` must be uint8"),
        ({"labels": torch.zeros(39, dtype=torch.int64)}, "`labels` must be int64, one for each of 40"),
        ({"labels": torch.zeros(40)}, "`labels` must be int64"),
        ({"labels": torch.full((40,), 3)}, r"`labels` must lie in 0\.\.2, got 3\.\.3"),
        ({"labels": torch.full((40,), -1)}, r"`labels` must lie in 0\.\.2, got -1"),
        ({"mean": (0.5,)}, "`mean` and `std`"),
        ({"std": (0.5, 0.5, 0.0)}, "`mean` and `std`"),
        (
            {
                "images": torch.zeros(0, 3, 5, 7, dtype=torch.uint8),
                "labels": torch.zeros(0, dtype=torch.int64),
            },
            "`images` is empty",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    images, labels = pixels_and_labels()
    fields = {"images": images, "labels": labels, "mean": MEAN, "std": STD, "classes": CLASSES}
    with pytest.raises(DataError, match=message):
        Images(**(fields | changes))  # type: ignore[arg-type]


def test_fields_cannot_be_set(images: Images) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        images.note = "changed"  # type: ignore[misc]


def test_its_text_is_short(images: Images) -> None:
    assert "tensor" not in repr(images)


@pytest.mark.parametrize("array", [np.zeros((2, 3)), np.zeros((1, 1, 2, 2), np.float32)])
def test_mapping_another_array_is_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match="expected uint8"):
        map_images(tmp_path / "x.npy")


def test_mapping_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be mapped"):
        map_images(tmp_path / "x.npy")

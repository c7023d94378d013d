from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from freewheel.data import cifar
from freewheel.data.cifar import JPEG_NOTE, LOOK, binary_source, cifar10, jpeg_source
from freewheel.data.decoded import load
from freewheel.data.files import DataFile, sha256_of
from freewheel.data.images import Images
from freewheel.errors import ConfigurationError, DataError

PER_MEMBER = 3
MEMBERS = [f"data_batch_{number}.bin" for number in range(1, 6)]


def record(number: int) -> bytes:
    """Image `number`: label number % 10, red = number, green = row, blue = column."""
    rows, columns = np.mgrid[0:32, 0:32].astype(np.uint8)
    planes = np.stack([np.full((32, 32), number, np.uint8), rows, columns])
    return bytes([number % 10]) + planes.tobytes()


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members() -> dict[str, bytes]:
    batches = {
        name: b"".join(record(index * PER_MEMBER + k) for k in range(PER_MEMBER))
        for index, name in enumerate(MEMBERS)
    }
    test = b"".join(record(100 + k) for k in range(PER_MEMBER))
    # Out of order and with strangers, as the official archive is.
    order = sorted(batches, reverse=True)
    return {"batches.meta.txt": b"airplane\n", "test_batch.bin": test} | {
        name: batches[name] for name in order
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "cifar-10-binary.tar.gz", members())


def read_binary(archive: Path, split: str) -> Images:
    return load(binary_source(archive, split, PER_MEMBER), LOOK, streamed=False)


def test_the_binary_version_is_read_in_the_official_order(archive: Path) -> None:
    data = read_binary(archive, "train")
    assert data.images[:, 0, 0, 0].tolist() == list(range(15))
    assert data.labels.tolist() == [number % 10 for number in range(15)]
    assert data.images[4, :, 7, 21].tolist() == [4, 7, 21]
    assert read_binary(archive, "test").images[:, 0, 5, 5].tolist() == [100, 101, 102]


def test_a_member_of_another_size_is_named(tmp_path: Path) -> None:
    content = members() | {"data_batch_2.bin": record(0)}
    with pytest.raises(DataError, match=r"data_batch_2\.bin should have 9219 bytes, has 3073"):
        read_binary(write_archive(tmp_path / "a.tar.gz", content), "train")


def test_a_missing_member_is_an_error(tmp_path: Path) -> None:
    content = members()
    del content["data_batch_3.bin"]
    with pytest.raises(DataError, match="expected 15 images, got 12"):
        read_binary(write_archive(tmp_path / "a.tar.gz", content), "train")


@pytest.mark.parametrize("keep", [0.6, 0.0])
def test_a_truncated_archive_is_named(archive: Path, keep: float) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz is damaged .*delete it"):
        read_binary(archive, "train")


def picture(number: int, size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 10, 100, 200)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_zip(path: Path, split: str, replaced: dict[str, bytes] | None = None, per_class: int = 2) -> Path:
    contents = {
        f"{split}/{label}/{number:04}.jpg": picture(index * 2 + number)
        for index, label in enumerate(LOOK.classes)
        for number in range(per_class)
    }
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in (contents | (replaced or {})).items():
            bundle.writestr(name, content)
    return path


def read_jpeg(archive: Path) -> Images:
    return load(jpeg_source(archive, "test", per_class=2), LOOK, streamed=False)


def test_the_classes_of_the_jpeg_copy_take_turns(tmp_path: Path) -> None:
    data = read_jpeg(write_zip(tmp_path / "a.zip", "test"))
    assert data.labels.tolist() == [*range(10), *range(10)]
    colours = data.images[:, :, 16, 16].int()
    expected = torch.tensor(
        [[(label * 2 + number) * 10, 100, 200] for number in (0, 1) for label in range(10)]
    )
    assert int((colours - expected).abs().max()) <= 3


def test_a_missing_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 2 images of each class, got \[1, 1"):
        read_jpeg(write_zip(tmp_path / "a.zip", "test", per_class=1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "is damaged"),
        (picture(1, (16, 16)), "expected 32 by 32 pixels"),
        (picture(1)[:300], "damaged"),
    ],
)
def test_a_damaged_picture_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    archive = write_zip(tmp_path / "a.zip", "test", {"test/cat/0001.jpg": content})
    with pytest.raises(DataError, match=rf"a\.zip.*{message}"):
        read_jpeg(archive)


def test_a_damaged_zip_is_an_error(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", "test")
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match="is no whole zip file"):
        read_jpeg(archive)
    archive = write_zip(tmp_path / "b.zip", "test")
    data = bytearray(archive.read_bytes())
    data[200] ^= 255
    archive.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"b\.zip is damaged .*CRC"):
        read_jpeg(archive)


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch, archive: Path) -> Path:
    """Take the small archives for the official ones."""
    official = DataFile(archive.name, archive.stat().st_size, sha256_of(archive))
    monkeypatch.setattr(cifar, "ARCHIVE", official)
    monkeypatch.setattr(cifar, "_PER_CLASS", {"train": 2, "test": 2})
    original = cifar.binary_source
    monkeypatch.setattr(cifar, "binary_source", lambda path, split: original(path, split, PER_MEMBER))
    return archive


def test_the_official_file_goes_before_the_jpeg_copy(small_sets: Path, cache: Path) -> None:
    root = small_sets.parent
    copy = root / "cifar10-jpeg"
    copy.mkdir()
    for split in ("train", "test"):
        write_zip(copy / f"cifar10-{split}-jpeg.zip", split)
    data = cifar10("train", root)
    assert (len(data), data.note) == (15, "")
    small_sets.unlink()
    data = cifar10("train", root)
    assert (len(data), data.note) == (20, JPEG_NOTE)
    assert cifar10("test", copy).note == JPEG_NOTE


def test_a_wrong_official_file_is_named(small_sets: Path, cache: Path) -> None:
    small_sets.write_bytes(small_sets.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=r"cifar-10-binary\.tar\.gz: expected .* bytes, .*truncated.*delete it"
    ):
        cifar10("train", small_sets.parent)


def test_a_root_without_either_names_the_official_file(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lack cifar-10-binary\.tar\.gz"):
        cifar10("train", tmp_path)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`split` must be 'train' or 'test', got 'valid'"):
        cifar10("valid")


def test_nothing_is_unpickled(archive: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    for _ in range(2):
        load(binary_source(archive, "train", PER_MEMBER), LOOK, streamed=True)


def test_the_jpeg_copy_of_the_full_set(big_data: Path, cache: Path) -> None:
    data = cifar10("test", big_data, streamed=True)
    assert data.note == JPEG_NOTE
    assert data.streamed
    assert data.labels.bincount().tolist() == [1000] * 10
    x, _ = data.fetch(torch.arange(1000))
    assert float(x.mean().abs()) < 0.1
    assert float((x.std() - 1).abs()) < 0.1


@pytest.mark.slow
def test_the_statistics_of_the_jpeg_copy_are_those_of_the_set(big_data: Path, cache: Path) -> None:
    data = cifar10("train", big_data, streamed=True)
    assert data.labels.bincount().tolist() == [5000] * 10
    x, _ = data.tensors()
    assert float(x.mean((0, 2, 3)).abs().max()) < 2e-3
    assert float((x.std((0, 2, 3)) - 1).abs().max()) < 1e-2

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from freewheel.data import (
    catalogue,
    fashion,
    fashion_mnist,
    fashion_mnist_small,
    shakespeare,
    small,
    text_of,
    tiny_shakespeare,
)
from freewheel.data.files import DataFile
from freewheel.errors import ConfigurationError, DataError


@pytest.mark.parametrize(("split", "each"), [("train", 1000), ("test", 200)])
def test_the_embedded_images_are_stratified(split: str, each: int) -> None:
    data = fashion_mnist_small(split)
    assert data.labels.bincount().tolist() == [each] * 10
    assert data.images.shape == (10 * each, 1, 28, 28)
    x, _ = data.tensors()
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02
    assert "part of Fashion-MNIST" in data.note


def test_the_embedded_images_are_not_sorted_by_class() -> None:
    assert len(set(fashion_mnist_small("train").labels[:100].tolist())) == 10


@pytest.mark.parametrize("load", [fashion_mnist_small, fashion_mnist])
def test_an_unknown_split_is_refused(load: object) -> None:
    assert callable(load)
    with pytest.raises(ConfigurationError, match="`split` must be 'train' or 'test', got 'validation'"):
        load("validation")


@pytest.fixture
def embedded_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "embedded"
    shutil.copytree(small.FOLDER, folder)
    monkeypatch.setattr(small, "FOLDER", folder)
    return folder


def test_a_damaged_embedded_file_is_named(embedded_copy: Path) -> None:
    file = embedded_copy / "fashion-mnist-small-test-images-idx3-ubyte.gz"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(
        DataError, match=r"embedded file .*test-images.* is damaged .*install freewheel again"
    ):
        fashion_mnist_small("test")


def test_a_missing_embedded_text_is_named(embedded_copy: Path) -> None:
    (embedded_copy / shakespeare.FILE).unlink()
    with pytest.raises(DataError, match=r"tiny-shakespeare\.txt\.gz is damaged"):
        tiny_shakespeare()


def test_every_embedded_file_is_recorded_and_has_its_licence() -> None:
    names = {path.name for path in small.FOLDER.glob("*.gz")}
    assert names == {*small.IMAGE_FILES, shakespeare.FILE}
    for name in names:
        assert small.verified(name).is_file()
    notice = (small.FOLDER / "NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "public domain" in notice


def test_tiny_shakespeare_is_numbered() -> None:
    data = tiny_shakespeare()
    assert len(data) == len(data.text) == 1_115_394
    assert len(data.vocabulary) == 65
    assert data.ids.dtype == torch.int64
    assert len(data.train) == 1_003_854
    assert torch.equal(torch.cat([data.train, data.validation]), data.ids)
    assert data.decode(data.validation[:200]) == data.text[1_003_854:][:200]
    assert torch.equal(data.encode("To be, or not"), data.encode("To be, or not to be")[:13])


def test_any_text_can_be_numbered() -> None:
    data = text_of("naïve 😀 ascii", train_share=0.5)
    assert data.decode(data.ids) == "naïve 😀 ascii"
    assert torch.equal(data.encode(data.text), data.ids)
    assert data.vocabulary == tuple(sorted(set(data.text)))
    assert data.split == 6


def test_an_empty_text_and_unknown_characters_are_refused() -> None:
    with pytest.raises(DataError, match="`text` is empty"):
        text_of("")
    with pytest.raises(DataError, match=r"not in the vocabulary: \['x', 'z'\]"):
        text_of("abc").encode("zax")


def test_the_catalogue_names_what_is_here(cache: Path) -> None:
    sets = {data.name: data for data in catalogue()}
    assert list(sets) == ["fashion-mnist-small", "tiny-shakespeare", "fashion-mnist", "cifar10"]
    for data in sets.values():
        assert data.embedded == (data.present() is not None)
        assert data.size > 100_000
        assert data.source.startswith("http")
    assert sets["tiny-shakespeare"].fetch() == small.FOLDER / shakespeare.FILE
    assert sets["fashion-mnist-small"].fetch() == small.FOLDER


def test_fetching_asks_only_for_what_is_missing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def download(file: DataFile, url: str, folder: Path, *, quiet: bool) -> None:
        assert url == fashion.ADDRESS + file.name
        assert quiet
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).touch()
        fetched.append(file.name)

    monkeypatch.setattr(fashion, "download", download)
    (data,) = (data for data in catalogue() if data.name == "fashion-mnist")
    (cache / "fashion-mnist").mkdir(parents=True)
    (cache / "fashion-mnist" / "train-labels-idx1-ubyte.gz").touch()
    assert data.present() is None
    for _ in range(2):
        assert data.fetch(quiet=True) == cache / "fashion-mnist"
    assert sorted(fetched) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
    ]


def test_fetching_leaves_the_network_alone_where_the_set_is_shared(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*arguments: object, **options: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(fashion, "download", download)
    monkeypatch.setenv("FREEWHEEL_DATA", str(tmp_path / "shared"))
    folder = tmp_path / "shared" / "fashion-mnist"
    folder.mkdir(parents=True)
    for file in (file for files in fashion.FILES.values() for file in files):
        (folder / file.name).touch()
    (data,) = (data for data in catalogue() if data.name == "fashion-mnist")
    assert data.present() == data.fetch() == folder


def test_importing_the_package_imports_nothing_that_only_a_download_or_a_picture_needs() -> None:
    # The parent package is replaced by an empty one: what its other parts import is not the question.
    code = """
import importlib.util, sys, types
import torch
package = types.ModuleType("freewheel")
package.__path__ = importlib.util.find_spec("freewheel").submodule_search_locations
sys.modules["freewheel"] = package
before = set(sys.modules)
import freewheel.data
print({"PIL", "rich", "psutil", "http.client", "urllib.request"} & (set(sys.modules) - before))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(("split", "each"), [("train", 6000), ("test", 1000)])
def test_full_fashion_mnist(big_data: Path, cache: Path, split: str, each: int) -> None:
    data = fashion_mnist(split, big_data)
    assert data.labels.bincount().tolist() == [each] * 10
    streamed = fashion_mnist(split, big_data / "fashion-mnist", streamed=True)
    assert streamed.streamed
    assert torch.equal(streamed.images, data.images)
    assert torch.equal(streamed.labels, data.labels)
    if split == "train":
        x, _ = data.tensors()
        assert abs(float(x.mean())) < 1e-3
        assert abs(float(x.std()) - 1) < 1e-3


def test_the_embedded_sets_are_made_by_the_script(big_data: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "make_embedded_data.py"
    command = [sys.executable, str(script), str(big_data), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (result.returncode, result.stdout) == (0, "5 files have the recorded contents\n"), result.stderr

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from freewheel.data import decoded
from freewheel.data.decoded import Block, Look, Source, load
from freewheel.errors import DataError

LOOK = Look((0.5,), (0.5,), ("even", "odd"))
SHAPE = (7, 1, 2, 3)
PIXELS = np.arange(42, dtype=np.uint8).reshape(SHAPE)
LABELS = np.arange(7, dtype=np.int64) % 2


class Decoder:
    """Gives out two blocks, the later one first, and counts how often it is asked."""

    def __init__(self, rows: int = 7) -> None:
        self.calls = 0
        self.rows = rows

    def __call__(self) -> Iterator[Block]:
        self.calls += 1
        yield Block(4, PIXELS[4 : self.rows], LABELS[4 : self.rows])
        yield Block(0, PIXELS[:4], LABELS[:4])


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("streamed", [True, False, None])
def test_every_way_gives_the_same_images(cache: Path, streamed: bool | None) -> None:
    data = load(Source("k", SHAPE, Decoder()), LOOK, streamed=streamed, note="n")
    assert torch.equal(data.images, torch.from_numpy(PIXELS))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.streamed == bool(streamed)
    assert data.note == "n"


def test_decoding_into_memory_leaves_no_file(cache: Path) -> None:
    load(Source("k", SHAPE, Decoder()), LOOK, streamed=False)
    assert not cache.exists()


def test_a_set_is_decoded_once(cache: Path) -> None:
    decoder = Decoder()
    for _ in range(3):
        load(Source("k", SHAPE, decoder), LOOK, streamed=True)
    assert decoder.calls == 1
    assert files_in(cache) == ["k.images.npy", "k.labels.npy"]


def test_another_source_is_another_copy(cache: Path) -> None:
    decoder = Decoder()
    for key in ("k", "l"):
        load(Source(key, SHAPE, decoder), LOOK, streamed=True)
    assert decoder.calls == 2


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
@pytest.mark.parametrize("which", ["images", "labels"])
def test_a_damaged_copy_is_made_again(cache: Path, which: str, damage: bytes | None) -> None:
    decoder = Decoder()
    load(Source("k", SHAPE, decoder), LOOK, streamed=True)
    file = cache / "decoded" / f"k.{which}.npy"
    file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    data = load(Source("k", SHAPE, decoder), LOOK, streamed=True)
    assert decoder.calls == 2
    assert torch.equal(data.images, torch.from_numpy(PIXELS))


def test_a_copy_of_another_shape_is_made_again(cache: Path) -> None:
    decoder = Decoder()
    load(Source("k", SHAPE, decoder), LOOK, streamed=True)
    np.save(cache / "decoded" / "k.images.npy", PIXELS[:6])
    assert load(Source("k", SHAPE, decoder), LOOK, streamed=True).images.shape == SHAPE
    assert decoder.calls == 2


def test_missing_images_are_an_error_and_leave_nothing(cache: Path) -> None:
    for streamed in (True, False):
        with pytest.raises(DataError, match="k: expected 7 images, got 6"):
            load(Source("k", SHAPE, Decoder(rows=6)), LOOK, streamed=streamed)
    assert files_in(cache) == []


def test_a_large_set_is_streamed_by_itself(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "MEMORY_SHARE", 0.0)
    assert load(Source("k", SHAPE, Decoder()), LOOK).streamed
    assert not load(Source("k", SHAPE, Decoder()), LOOK, streamed=False).streamed


def test_without_a_writable_cache_streaming_is_refused(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written .*FREEWHEEL_CACHE"):
        load(Source("k", SHAPE, Decoder()), LOOK, streamed=True)


def test_without_a_writable_cache_a_large_set_is_held_in_memory(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file where the folder should be")
    monkeypatch.setattr(decoded, "MEMORY_SHARE", 0.0)
    data = load(Source("k", SHAPE, Decoder()), LOOK)
    assert not data.streamed
    assert data.note.startswith("held in memory: the cache folder")
    assert torch.equal(data.images, torch.from_numpy(PIXELS))

"""Checkpoints on disk: complete or not there, and never believed when damaged."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from freewheel.checkpoints import folder
from freewheel.checkpoints.folder import CHECKPOINTS, MANIFEST, STATE, TENSORS, newest, ordered, read, write
from freewheel.errors import CheckpointError


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return tmp_path / CHECKPOINTS


def tree(value: float) -> dict[str, Any]:
    return {"weights": torch.full((100,), value), "steps": [1, (2, 3)]}


def value_of(found: folder.Checkpoint) -> float:
    assert found.tree["steps"] == [1, (2, 3)]
    return float(found.tree["weights"][0])


def test_what_was_written_is_read(parent: Path) -> None:
    path = write(parent, 40, tree(0.1), keep=3)
    assert path == parent / "40"
    assert torch.equal(read(path).tree["weights"], torch.full((100,), 0.1))
    assert read(path).tree["steps"] == [1, (2, 3)]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_tensors_are_read_as_they_were(dtype: torch.dtype, parent: Path) -> None:
    tensors = [torch.randn(3, 4, dtype=dtype).t(), torch.tensor(1j, dtype=dtype).conj()]
    path = write(parent, 1, {"tensors": tensors}, keep=1)
    for back, tensor in zip(read(path).tree["tensors"], tensors, strict=True):
        assert torch.equal(back, tensor)
        assert (back.dtype, back.stride()) == (dtype, tensor.stride())


def test_only_the_owner_can_read(parent: Path) -> None:
    path = write(parent, 40, tree(0.0), keep=3)
    assert {stat.S_IMODE(where.stat().st_mode) for where in (parent, path)} == {0o700}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_the_last_few_are_kept(parent: Path) -> None:
    for steps in (10, 20, 100, 30):
        write(parent, steps, tree(steps), keep=2)
    assert [path.name for path in ordered(parent)] == ["30", "100"]  # by when they were written
    assert value_of(newest(parent.parent)) == 30


def test_one_of_the_same_name_is_replaced(parent: Path) -> None:
    write(parent, 10, tree(1.0), keep=2)
    write(parent, 10, tree(2.0), keep=2)
    assert [path.name for path in parent.iterdir()] == ["10"]
    assert value_of(read(parent / "10")) == 2


def test_a_checkpoint_itself_can_be_named(parent: Path) -> None:
    for steps in (10, 20):
        write(parent, steps, tree(steps), keep=2)
    assert value_of(newest(parent / "10")) == 10


# --- what can go wrong while writing ---


def full(*arguments: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_safetensors(*arguments: Any, **options: Any) -> Any:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


FAILURES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "tensors": (folder, "save_file", full_in_safetensors),
    "tensors-oserror": (folder, "save_file", full),
    "json": (Path, "write_text", full),
    "fsync": (os, "fsync", full),
    "rename": (Path, "rename", full),
    "chmod": (Path, "chmod", full),
    "digest": (folder, "_digest", full),
}


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_full_disk_leaves_the_checkpoints_before_and_nothing_else(
    failure: str, steps: int, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(parent, 10, tree(1.0), keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(*FAILURES[failure])
        with pytest.raises(OSError, match="No space left"):
            write(parent, steps, tree(2.0), keep=1)
    assert [path.name for path in parent.iterdir()] == ["10"]
    assert value_of(newest(parent.parent)) == 1


@pytest.mark.parametrize("call", range(1, 5))
def test_a_disk_that_is_full_at_any_sync_leaves_a_complete_checkpoint(
    call: int, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(parent, 10, tree(1.0), keep=1)
    calls, fsync = iter(range(1, 100)), os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: full() if next(calls) == call else fsync(handle))
        with pytest.raises(OSError, match="No space left"):
            write(parent, 20, tree(2.0), keep=1)
    assert [path.name for path in parent.iterdir()] == ["10"]
    assert value_of(newest(parent.parent)) == 1


def test_what_cannot_be_written_leaves_nothing(parent: Path) -> None:
    with pytest.raises(CheckpointError, match="hidden is a object"):
        write(parent, 10, {"hidden": object()}, keep=1)
    assert list(parent.iterdir()) == []


def test_what_a_killed_run_left_is_swept_away(parent: Path) -> None:
    write(parent, 10, tree(1.0), keep=1)
    (parent / ".unfinished-abc").mkdir()
    (parent / ".unfinished-abc" / TENSORS).write_bytes(b"half")
    assert [path.name for path in ordered(parent)] == ["10"]
    folder.sweep(parent)
    assert [path.name for path in parent.iterdir()] == ["10"]


# --- what can be wrong with what is read ---


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def overwrite(text: str, path: Path) -> None:
    path.write_text(text)


def edit(path: Path) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "truncated-tensors": (TENSORS, truncate, "tensors.safetensors has .* bytes, not"),
    "flipped-tensors": (TENSORS, flip, "tensors.safetensors has another SHA-256 sum"),
    "missing-tensors": (TENSORS, Path.unlink, "tensors.safetensors: No such file"),
    "truncated-state": (STATE, truncate, "state.json has .* bytes, not"),
    "flipped-state": (STATE, flip, "state.json has another SHA-256 sum"),
    "missing-state": (STATE, Path.unlink, "state.json: No such file"),
    "empty-manifest": (MANIFEST, partial(overwrite, ""), "damaged manifest.json"),
    "other-manifest": (MANIFEST, partial(overwrite, "[]"), "damaged manifest.json"),
    "truncated-manifest": (MANIFEST, truncate, "damaged manifest.json"),
    "missing-manifest": (MANIFEST, Path.unlink, "it has no manifest.json"),
    "other-format": (MANIFEST, edit, "format 99, and this version of freewheel reads 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_newest_complete_one_is_used(damage: str, parent: Path) -> None:
    name, harm, message = DAMAGES[damage]
    for steps in (10, 20, 30):
        write(parent, steps, tree(steps), keep=3)
    harm(parent / "30" / name)
    with pytest.raises(CheckpointError, match=message):
        read(parent / "30")
    with pytest.warns(UserWarning, match=f"{message}.*; the earlier .*20 is used"):
        assert value_of(newest(parent.parent)) == 20


def test_where_all_are_damaged_every_one_is_named(parent: Path) -> None:
    for steps in (10, 20):
        truncate(write(parent, steps, tree(steps), keep=3) / TENSORS)
    with pytest.raises(CheckpointError, match=r"no complete checkpoint: .*20 is damaged.*10 is damaged"):
        newest(parent.parent)


def test_a_damaged_one_that_is_named_is_not_passed_over(parent: Path) -> None:
    for steps in (10, 20):
        write(parent, steps, tree(steps), keep=3)
    truncate(parent / "20" / TENSORS)
    with pytest.raises(CheckpointError, match="20 is damaged"):
        newest(parent / "20")


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint; name the directory of a run"):
        newest(tmp_path)

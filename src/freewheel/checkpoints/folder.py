"""Checkpoints on disk: written to a folder beside, made durable, renamed; read only if complete.

A checkpoint is a folder of three files: ``tensors.safetensors``, ``state.json``, and, written last,
``manifest.json`` with the sizes and SHA-256 sums of the others. It gets its name, the number of steps, when
all of it is on the disk, so whatever has a name is complete unless the disk has damaged it since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from freewheel.checkpoints.tree import Tree, flatten, unflatten
from freewheel.errors import CheckpointError

FORMAT = 1
CHECKPOINTS = "checkpoints"
TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_UNFINISHED = ".unfinished-"
_CHUNK = 1 << 20


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        folder: where it lies.
        order: which it is of those that were written to the same place.
        tree: the state of the run.
    """

    folder: Path
    order: int
    tree: Tree


def write(parent: Path, steps: int, tree: Tree, keep: int) -> Path:
    """Writes a checkpoint, then removes the oldest beyond the last few.

    Args:
        parent: the folder of all checkpoints of a run; it is made, for its owner only.
        steps: number of steps of the run, the checkpoint's name; one of that name is replaced.
        tree: the state.
        keep: how many to keep, >= 1.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: it cannot be written; nothing of it is left, and the others are as they were.
        CheckpointError: the tree holds what cannot be written.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    order = 1 + max((_order(folder) or 0 for folder in _named(parent)), default=0)
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))  # 0700
    try:
        _fill(unfinished, tree, {"format": FORMAT, "steps": steps, "order": order})
        folder = parent / str(steps)
        _put_in_place(unfinished, folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync(parent)
    _prune(parent, keep)
    return folder


def _fill(folder: Path, tree: Tree, header: dict[str, Any]) -> None:
    plain, tensors = flatten(tree)
    try:
        save_file(tensors, str(folder / TENSORS))
    except SafetensorError as error:  # what its own code says of a full disk, say
        raise OSError(str(error)) from error
    _write(folder / STATE, json.dumps(plain))
    files = {name: _described(folder / name) for name in (TENSORS, STATE)}
    _write(folder / MANIFEST, json.dumps({**header, "files": files}, indent=2))
    for path in (folder / TENSORS, folder / STATE, folder / MANIFEST):
        path.chmod(0o600)
        _sync(path)
    _sync(folder)


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put_in_place(unfinished: Path, folder: Path) -> None:
    """Renames; one that has the name already is set aside first, for a folder that is not empty stays."""
    if not folder.exists():
        unfinished.rename(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder.parent))
    try:
        folder.rename(aside / folder.name)
        try:
            unfinished.rename(folder)
        except BaseException:
            (aside / folder.name).rename(folder)
            raise
    finally:
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _named(parent: Path) -> list[Path]:
    """The folders that may be checkpoints: those whose name is a number."""
    if not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if path.name.isdecimal() and path.is_dir()]


def _order(folder: Path) -> int | None:
    """Which one it is of those written here; None where that cannot be read."""
    try:
        return int(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["order"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def ordered(parent: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, whether they are complete or not.

    Names do not tell: a run that went back to an earlier one has older ones with more steps beside it. Those
    that do not tell either, because they are damaged, come last.
    """

    def age(folder: Path) -> tuple[int, int]:
        return _order(folder) or 0, int(folder.name)

    return sorted(_named(parent), key=age, reverse=True)


def _prune(parent: Path, keep: int) -> None:
    for folder in ordered(parent)[keep:]:
        with contextlib.suppress(OSError):
            # Loses its name first: whoever is killed while removing must leave no half of a checkpoint.
            aside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=parent))
            folder.rename(aside / folder.name)
            shutil.rmtree(aside)


def sweep(parent: Path) -> None:
    """Removes what a run that was killed while it wrote has left behind; no other run may be writing here."""
    if parent.is_dir():
        for path in parent.glob(_UNFINISHED + "*"):
            shutil.rmtree(path, ignore_errors=True)


# --- reading ---


def read(folder: Path) -> Checkpoint:
    """Reads one checkpoint.

    Raises:
        CheckpointError: it is truncated, damaged, or none; the message says what is wrong.
    """
    manifest = _manifest(folder)
    for name, described in manifest["files"].items():
        _check(folder / name, described)
    try:
        plain = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return Checkpoint(folder, manifest["order"], unflatten(plain, load_file(str(folder / TENSORS))))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {folder} has format {manifest['format']!r}, and this version of freewheel reads"
                f" {FORMAT}; use the version that wrote it"
            )
        checked: dict[str, Any] = {
            "order": int(manifest["order"]),
            "files": {name: dict(manifest["files"][name]) for name in (TENSORS, STATE)},
        }
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {MANIFEST}") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {folder} has a damaged {MANIFEST}: {error!r}") from error
    return checked


def _check(path: Path, described: dict[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != described.get("bytes"):
            raise CheckpointError(
                f"checkpoint {path.parent} is damaged: {path.name} has {size} bytes, not"
                f" {described.get('bytes')}"
            )
        if _digest(path) != described.get("sha256"):
            raise CheckpointError(f"checkpoint {path.parent} is damaged: {path.name} has another SHA-256 sum")
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path.parent} is damaged: {path.name}: {error.strerror or error}"
        ) from error


def newest(run: Path) -> Checkpoint:
    """The newest complete checkpoint of a run directory; damaged ones are passed over with a warning.

    Args:
        run: a run directory, or the folder of one checkpoint.

    Raises:
        CheckpointError: there is none, or the one that was named is damaged.
    """
    if (run / MANIFEST).is_file():
        return read(run)
    folders = ordered(run / CHECKPOINTS)
    if not folders:
        raise CheckpointError(
            f"`resume` {run} has no checkpoint; name the directory of a run that wrote one (`run_dir`), or"
            " leave `resume` out"
        )
    errors: list[str] = []
    # Those whose manifest is damaged may be the newest: they are looked at first, to be told of.
    for folder in sorted(folders, key=lambda folder: _order(folder) is not None):
        try:
            found = read(folder)
        except CheckpointError as error:
            errors.append(str(error))
            continue
        if errors:
            warnings.warn(f"{'; '.join(errors)}; the earlier {found.folder} is used", stacklevel=2)
        return found
    raise CheckpointError(f"`resume` {run} has no complete checkpoint: {'; '.join(errors)}")

from __future__ import annotations

from pathlib import Path

import pytest

from freewheel.data.files import DataFile, sha256_of, verify
from freewheel.data.places import cache_folder, find
from freewheel.errors import DataError

ABC = DataFile(
    "abc.txt",
    3,
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    "900150983cd24fb0d6963f7d28e17f72",
)


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"abc")
    return folder


def test_a_right_file_is_verified(tmp_path: Path) -> None:
    put(tmp_path, "abc.txt")
    assert verify(tmp_path / "abc.txt", ABC) == tmp_path / "abc.txt"
    assert sha256_of(tmp_path / "abc.txt") == ABC.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab", r"expected 3 bytes, got 2 \(truncated\); delete it"),
        (b"abcd", "expected 3 bytes, got 4; delete it"),
        (b"abd", f"bad checksum: expected sha256 {ABC.sha256}, got a52d159f.*; delete it"),
    ],
)
def test_a_wrong_file_is_named_with_both_sums(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "abc.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"file .*abc\.txt: {message}"):
        verify(tmp_path / "abc.txt", ABC)


def test_the_authors_sum_counts_too(tmp_path: Path) -> None:
    put(tmp_path, "abc.txt")
    with pytest.raises(DataError, match="expected md5 00, got 90015098"):
        verify(tmp_path / "abc.txt", ABC._replace(md5="00"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"abc\.txt cannot be read"):
        verify(tmp_path / "abc.txt", ABC)


def test_the_cache_is_the_named_folder_or_in_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FREEWHEEL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("FREEWHEEL_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "freewheel"


def test_places_are_searched_in_order(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("set", ["a"]) is None
    in_cache = put(cache / "set", "a")
    assert find("set", ["a"]) == in_cache
    monkeypatch.setenv("FREEWHEEL_DATA", str(put(tmp_path / "shared")))
    assert find("set", ["a"]) == in_cache
    in_shared = put(tmp_path / "shared" / "set", "a")
    assert find("set", ["a"]) == in_shared
    in_root = put(tmp_path / "root", "a")
    assert find("set", ["a"], in_root) == in_root
    below_root = put(tmp_path / "root" / "set", "a")
    assert find("set", ["a"], str(in_root)) == below_root


def test_all_files_must_be_there(cache: Path) -> None:
    put(cache / "set", "a")
    assert find("set", ["a", "b"]) is None


def test_a_root_without_the_files_is_refused_even_if_the_cache_has_them(cache: Path, tmp_path: Path) -> None:
    put(cache / "set", "a")
    with pytest.raises(DataError, match=r"`root`: .* lack a; leave `root` out"):
        find("set", ["a"], tmp_path)


def test_a_missing_root_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`root` is not a folder: .*nowhere"):
        find("set", ["a"], tmp_path / "nowhere")


def test_a_missing_shared_folder_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEWHEEL_DATA", "/nonexistent/folder")
    with pytest.raises(DataError, match="FREEWHEEL_DATA names no folder: '/nonexistent/folder'"):
        find("set", ["a"])

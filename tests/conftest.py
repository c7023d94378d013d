"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded_and_on_one_thread() -> Iterator[None]:
    """Seed torch, and give operations one thread, so that a test does not depend on the one before."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts what runs in its background with SIGINT ignored; Ctrl-C is to be tested there, too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's own cache out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREEWHEEL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder of this test alone, with no folder of large sets beside it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FREEWHEEL_CACHE", str(folder))
    monkeypatch.delenv("FREEWHEEL_DATA", raising=False)
    return folder


@pytest.fixture
def big_data() -> Path:
    """Return the folder with the large data sets; tests that need it are left out where none is named."""
    named = os.environ.get("FREEWHEEL_DATA", "")
    if not named:
        pytest.skip("the large data sets were left out: FREEWHEEL_DATA is not set")
    folder = Path(named)
    assert folder.is_dir(), f"FREEWHEEL_DATA names no folder: {named}"
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a command runs: an empty folder, and a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path

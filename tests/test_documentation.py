"""The examples of the documentation run: Python blocks of the README and docs, and docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import freewheel

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (f"{page.name}-{number}", code)
        for page in pages
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
    ]


def modules() -> list[str]:
    found = pkgutil.walk_packages(freewheel.__path__, "freewheel.")
    return [module.name for module in found if not module.name.endswith("__main__")]


@pytest.mark.parametrize(("name", "code"), blocks(), ids=[name for name, _ in blocks()])
def test_documented_code_runs(name: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0


def test_the_readme_has_examples_that_run() -> None:
    assert any(name.startswith("README") for name, _ in blocks())

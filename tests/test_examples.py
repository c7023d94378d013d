"""The examples run, with a tiny budget."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
METRICS = {
    "images.py": {"accuracy", "loss"},
    "dictionaries.py": {"class_loss", "mse"},
    "text.py": {"loss", "perplexity", "bits_per_character"},
}


@pytest.mark.parametrize(
    "name", sorted(path.name for path in FOLDER.glob("*.py") if not path.name.startswith("mnist"))
)
def test_examples_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runpy.run_path(str(FOLDER / name))["main"](max_samples=64)
    assert result.samples >= 64
    assert set(result.metrics) == METRICS[name]
    assert all(math.isfinite(value) for value in result.metrics.values())
    assert str(result.metrics) in capsys.readouterr().out
    assert (tmp_path / "images.html").is_file() is (name == "images.py")


def test_the_readme_names_every_example() -> None:
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"(examples/{name})" in readme for name in METRICS)
    scripts = {"mnist.py", "mnist_freewheel.py"}  # see test_dropin_run.py
    assert METRICS.keys() | scripts == {path.name for path in FOLDER.glob("*.py")}

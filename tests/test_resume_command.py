"""``freewheel train --resume``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from freewheel.checkpoints.folder import newest
from freewheel.cli import app
from freewheel.report import Run

TINY = ("--model", "mlp", "--max-samples", "320", "--workers", "2", "--seed", "3", "--lr", "0.01")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_a_run_goes_on_with_its_settings_and_another_end(folder: Path) -> None:
    run("images", *TINY, "--method", "downpour", "--set", "push_every=2", "--run-dir", "here")
    said = run("--resume", "here", "--max-samples", "640")
    assert "everything is written to here" in said
    whole = Run.from_directory(folder / "here")
    assert (whole.finished.samples, whole.started.planned_samples) == (640, 640)
    assert (whole.started.method, whole.started.workers, whole.started.seed) == ("downpour", 2, 3)
    assert newest(folder / "here").folder.name == "40"
    kept = json.loads((folder / "here" / "recipe.json").read_text())
    assert kept["settings"]["budget"]["max_samples"] == 640
    assert kept["set"] == ["push_every=2"]


def test_the_number_of_workers_is_that_of_the_checkpoint_or_another(folder: Path) -> None:
    run("images", *TINY, "--run-dir", "here")
    run("--resume", "here", "--max-samples", "480", "--workers", "3", "--run-dir", "there")
    assert Run.from_directory(folder / "there").started.workers == 3
    run("--resume", "there", "--max-samples", "640")
    again = Run.from_directory(folder / "there")
    assert (again.started.workers, again.finished.samples) == (3, 640)


def test_without_another_end_a_run_that_is_done_says_so_again(folder: Path) -> None:
    run("images", *TINY, "--run-dir", "here")
    run("--resume", "here")
    assert Run.from_directory(folder / "here").finished.samples == 320


def test_one_checkpoint_may_be_named_and_another_folder(folder: Path) -> None:
    run("images", *TINY, "--run-dir", "here")
    run("--resume", "here/checkpoints/20", "--max-samples", "480", "--run-dir", "there")
    assert Run.from_directory(folder / "here").finished.samples == 320
    assert Run.from_directory(folder / "there").finished.samples == 480


def test_a_limit_that_is_given_takes_the_place_of_all(folder: Path) -> None:
    run("images", *TINY, "--max-seconds", "1000", "--target", "accuracy=0.99", "--run-dir", "here")
    run("--resume", "here", "--max-samples", "400")
    started = Run.from_directory(folder / "here").started
    assert (started.planned_samples, started.max_seconds, started.target) == (400, None, None)


def test_an_interval_of_evaluations_leaves_the_limits(folder: Path) -> None:
    run("images", *TINY, "--run-dir", "here")
    run("--resume", "here", "--evaluate-every", "160")
    assert Run.from_directory(folder / "here").started.planned_samples == 320


def test_never_writes_none(folder: Path) -> None:
    run("images", *TINY, "--run-dir", "here", "--checkpoint-every", "never")
    assert not (folder / "here" / "checkpoints").exists()
    said = run("--resume", "here", code=2)
    assert "--resume here has no checkpoint" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("images --resume here", "what to train was given, too"),
        ("--resume here --lr 0.5 --method downpour", "--lr, --method was given, too"),
        ("--resume nowhere", "nowhere has no recipe.json: it is not a run of freewheel train"),
        ("", "name what to train, images or text, or a run to go on with: --resume RUN"),
        ("images --checkpoint-every often", "--checkpoint-every: a time must be a number >= 0 and a unit"),
        ("images --checkpoint-every 0", "--checkpoint-every must be a number of seconds > 0, got 0.0"),
        ("images --model mlp --keep-checkpoints 0", "--keep-checkpoints must be a whole number >= 1, got 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options: str, message: str) -> None:
    run("images", *TINY, "--run-dir", "here")
    assert message in run(*options.split(), code=2)

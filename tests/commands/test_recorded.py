"""``freewheel train --record``, and what ``replay`` and ``audit`` say of such a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from invoked import run

from freewheel.commands import recipe_file
from freewheel.commands import train as train_command
from freewheel.errors import TrainingError
from freewheel.recording import Recording

pytestmark = pytest.mark.usefixtures("folder")

TINY = ("--model", "mlp", "--max-samples", "480", "--workers", "3", "--evaluate-every", "240")


def train(*options: str, method: str = "stale_synchronous") -> str:
    return run("train", "images", *TINY, "--method", method, "--record", "--run-dir", "here", *options)


@pytest.mark.parametrize(
    "method", ["stale_synchronous", "downpour", "local_sgd", "diloco", "elastic_averaging"]
)
def test_a_recorded_run_replays(method: str, folder: Path) -> None:
    said = train("--seed", "3", method=method)
    assert "freewheel replay here" in said
    assert (folder / "here" / "recipe.json").is_file()
    said = run("replay", "here")
    updates = Recording.load(folder / "here").updates
    assert "The replay matches: " in said
    assert f"{updates:,} updates" in said


def test_the_choices_of_the_run_rebuild_it(folder: Path) -> None:
    options = "--batch-size 10 --lr 0.3 --momentum 0.5 --schedule linear --target accuracy=0.99 --epochs 1"
    train(*options.split())
    choice = recipe_file.read(folder / "here")
    chosen = choice.settings.optimization
    assert (choice.what, choice.method, choice.settings.model) == ("images", "stale_synchronous", "mlp")
    assert (chosen.batch_size, chosen.lr, chosen.momentum, chosen.schedule) == (10, 0.3, 0.5, "linear")
    assert choice.settings.budget.target == ("accuracy", 0.99)
    assert "The replay matches" in run("replay", "here")


def test_until_shows_the_update() -> None:
    train()
    said = run("replay", "here", "--until", "17")
    assert "Update 17 of mlp on fashion-mnist-small" in said
    for name in ("Worker", "After its step", "On batch", "Staleness", "Norm of the update", "Samples"):
        assert name in said
    assert "matches" not in said


def test_a_replay_that_does_not_match_ends_with_an_error(folder: Path) -> None:
    train()
    file = folder / "here" / "recording.json"
    header = json.loads(file.read_text())
    file.write_text(json.dumps({**header, "final": "0" * 64}))
    assert "does not match" in run("replay", "here", code=1)


def test_an_update_beyond_the_last_is_refused() -> None:
    train()
    assert "--until is 31, but the run applied 30 updates" in run("replay", "here", "--until", "31", code=2)


def test_a_run_without_recording_is_refused(folder: Path) -> None:
    run("train", "images", *TINY, "--method", "downpour", "--run-dir", "plain")
    assert not (folder / "plain" / "recording.json").exists()
    assert "train --record" in run("replay", "plain", code=2)
    assert "--record" in run("audit", "plain", code=2)


def test_a_damaged_recipe_is_named(folder: Path) -> None:
    train()
    (folder / "here" / "recipe.json").write_text('{"what": "images"}')
    assert "recipe.json is damaged" in run("replay", "here", code=2)


def test_hogwild_is_not_recorded(folder: Path) -> None:
    said = run("train", "images", *TINY, "--record", "--run-dir", "here", code=2)
    assert "use stale_synchronous() or downpour()" in said
    assert not (folder / "here").exists()


def test_audit_finds_that_all_adds_up() -> None:
    train()
    said = run("audit", "here")
    assert re.search(r"Batches computed\s+│\s+30", said)
    assert re.search(r"Applied\s+│\s+30", said)
    assert "Everything adds up." in said


def test_audit_names_what_does_not(folder: Path) -> None:
    train()
    file = folder / "here" / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if json.loads(line)["event"] != "RunFinished"))
    said = run("audit", "here", code=1)
    assert "- the events end without RunFinished" in said
    assert re.search(r"\d+ violations?\.", said)


@pytest.mark.parametrize("command", ["replay", "audit"])
def test_help_teaches(command: str) -> None:
    said = run(command, "--help")
    assert "freewheel train images --model mlp --method downpour --record" in said
    assert f"freewheel {command} runs/first" in said
    assert command in run("--help")


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("diloco", ("--momentum", "0.1"), "--momentum is no setting of diloco"),
        ("downpour", ("--momentum", "0.5"), "--momentum is no setting of downpour"),
        ("local_sgd", ("--granularity", "layer"), "--granularity is no setting of local_sgd"),
    ],
)
def test_a_setting_that_a_method_does_not_have_is_refused(
    method: str, options: tuple[str, ...], named: str
) -> None:
    assert named in run("train", "images", *TINY, "--method", method, *options, code=2)


def test_a_run_with_settings_and_compression_of_its_own_replays() -> None:
    """Compression is a rule, which JSON has not: it is kept as it was typed."""
    train("--set", "push_every=2", "--compression", "top_k:0.1", method="downpour")
    assert "top_k" in Path("here/config.json").read_text(encoding="utf-8")
    assert "bit for bit" in run("replay", "here")


def test_record_reaches_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fit(model: Any, data: Any, **arguments: Any) -> Any:
        given.update(arguments)
        raise TrainingError("enough seen")

    monkeypatch.setattr(train_command, "fit", fit)
    run("train", "images", *TINY, "--record", code=1)
    assert given["record"] is True
    run("train", "images", *TINY, code=1)
    assert given["record"] is False

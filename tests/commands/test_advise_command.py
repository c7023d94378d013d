"""``freewheel advise``: what the options describe is what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from invoked import runner

import freewheel.commands.advise as command
from freewheel.advise import advise
from freewheel.calibration import Calibration, Measurement
from freewheel.cli import app
from freewheel.engines.costs import ServerSeconds
from freewheel.simulation import Network

pytestmark = pytest.mark.usefixtures("folder")

FOUND = Calibration((Measurement(1, (0.01,), 16.0, 0.0),), ServerSeconds(1e-4, 1e-4), 18, 2, "hogwild")
ASKED = "advise images --model mlp --workers 4 --latency 1ms --stragglers 1 --slowdown 3 --max-samples 640"


def test_it_says_which_method_to_use_and_writes_a_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    ask = advise

    def asked(*arguments: Any, **options: Any) -> Any:
        given.update(options)
        return ask(*arguments, **{**options, "calibration": FOUND, "progress": False})

    monkeypatch.setattr(command, "run_advice", asked)
    result = runner.invoke(app, [*ASKED.split(), "--run-dir", "here"])
    assert result.exit_code == 0, result.output
    assert (given["workers"], given["network"], given["slow"]) == (4, Network(0.001), {3: 3.0})
    assert set(given["contestants"]) == {*command.TRIED, "synchronous, 1 backup"}
    for words in ("one worker", "stale_synchronous", "Expect", "Predicted for 4 workers"):
        assert words in result.output
    assert (folder / "here" / "report.html").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [("--workers 0", "--workers must be"), ("--workers 2 --stragglers 3", "--stragglers must be 0 to 2")],
)
def test_a_refusal_is_one_line_and_code_2(options: str, message: str) -> None:
    result = runner.invoke(app, ["advise", "images", "--model", "mlp", *options.split()])
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_number_of_workers_that_cannot_be_is_refused_by_its_own_name() -> None:
    result = runner.invoke(app, ["advise", "images", "--workers", "-8"])
    assert result.exit_code == 2
    assert "--workers must be a whole number >= 1, or 'auto' for one per core, got -8" in result.output

"""Which way a metric is better: one answer for the end of a run, its display and its report."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import freewheel
from freewheel.errors import ConfigurationError
from freewheel.events import RunStarted, from_json, to_json
from freewheel.job import Stop
from freewheel.metrics import Target, smaller_is_better
from freewheel.monitors import progress
from freewheel.recipes.settings import Budget, Settings
from freewheel.recipes.text import text
from freewheel.report import Run, render

COSTS = [
    "loss",
    "Loss",
    "valLoss",
    "error_rate",
    "top1_error",
    "errors",
    "perplexity",
    "nll",
    "MSE",
    "val_mse",
]
COSTS += ["nRMSE", "MAE", "mean mae", "bits_per_character", "Bits per byte", "WER", "test/wer", "cer"]
GAINS = ["accuracy", "f1", "BLEU", "R2", "answered", "cancer_recall", "power", "samples", "permutations"]


@pytest.mark.parametrize("metric", COSTS)
def test_names_of_costs(metric: str) -> None:
    assert smaller_is_better(metric)
    assert Stop(epochs=1, target=(metric, 1.0)).is_reached({metric: 0.5})
    assert not Stop(epochs=1, target=(metric, 1.0)).is_reached({metric: 1.5})


@pytest.mark.parametrize("metric", GAINS)
def test_names_of_gains(metric: str) -> None:
    assert not smaller_is_better(metric)
    assert Stop(epochs=1, target=(metric, 1.0)).is_reached({metric: 1.5})
    assert not Stop(epochs=1, target=(metric, 1.0)).is_reached({metric: 0.5})


def test_a_target_that_says_which_way_decides_for_its_metric_alone() -> None:
    assert smaller_is_better("gap", ("gap", 1.0, "min"))
    assert not smaller_is_better("gap", ("gap", 1.0))
    assert not smaller_is_better("loss", ("loss", 1.0, "max"))
    assert smaller_is_better("loss", ("gap", 1.0, "max"))
    assert Stop(epochs=1, target=("gap", 1.0, "min")).is_reached({"gap": 0.5})
    assert not Stop(epochs=1, target=("loss", 1.0, "max")).is_reached({"loss": 0.5})


@pytest.mark.parametrize(
    "target",
    [
        ("wer", 0.1, "least"),
        ("wer", 0.1, None),
        ("wer", 0.1, "min", 1),
        ("wer", math.nan, "min"),
        ("wer", "min"),
    ],
)
def test_a_target_of_another_form_is_refused(target: Any) -> None:
    with pytest.raises(ConfigurationError, match="may end in 'min' or 'max', got"):
        Stop(epochs=1, target=target)


@pytest.mark.parametrize("target", [None, ("gap", 1.5), ("gap", 1.5, "min")])
def test_events_with_a_target_come_back_as_they_were(target: Target | None) -> None:
    event = RunStarted("hogwild", "threads", 2, 16, 0, 100, None, 10, target)
    assert from_json(to_json(event)) == event


@pytest.mark.parametrize("target", [("gap", 1.5), ("gap", 1.5, "min"), ("gap", 1.5, "max")])
def test_a_run_with_a_target_is_trained_shown_and_reported(target: Target, tmp_path: Path) -> None:
    x = torch.randn(32, 4)
    out = StringIO()
    result = freewheel.fit(
        nn.Linear(4, 2),
        (x, x[:, :2]),
        loss=nn.MSELoss(),
        evaluate=lambda module: {"gap": 1.0},
        target=target,  # type: ignore[arg-type, unused-ignore]
        epochs=4,
        workers=1,
        monitors=[progress(Console(file=out, width=120, color_system=None))],
        run_dir=tmp_path / "run",
    )
    reached = target == ("gap", 1.5, "min")
    assert result.reason == ("target" if reached else "epochs")
    assert "until gap 1.5" in out.getvalue()
    kept = Run.from_directory(tmp_path / "run")
    assert kept.started.target == target
    page = render([kept])
    assert ("The target, gap 1.5, was not reached." in page) is not reached
    assert "target 1.5" in render([kept, Run("other", kept.events)])


def test_every_metric_of_the_text_recipe_may_be_its_target() -> None:
    budget = Budget(max_samples=100, target=("bits_per_character", 2.0))
    assert text(Settings(budget=budget)).arguments["target"] == ("bits_per_character", 2.0)

"""Advice: which method is chosen, and that the words say so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import freewheel
from freewheel.advice import Advice, Prediction, common_level, crossing
from freewheel.advise import advise
from freewheel.calibration import Calibration, Measurement
from freewheel.engines.costs import ServerSeconds
from freewheel.errors import ConfigurationError
from freewheel.events import Evaluated, RunFinished, RunStarted, Traffic
from freewheel.methods import Method
from freewheel.metrics import Target
from freewheel.park import Park, usual
from freewheel.report import Run
from freewheel.simulation import Network

X = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
LOSS = nn.CrossEntropyLoss()
FOUND = Calibration((Measurement(1, (0.01,), 16.0, 0.0),), ServerSeconds(1e-4, 1e-4), 18, 2, "hogwild")
LAN = Network(latency_s=0.001)


def prediction(
    label: str,
    method: Method,
    *curve: tuple[float, float],
    workers: int = 8,
    reason: str = "max_samples",
    reached: float | None = None,
    busy: float = 0.5,
) -> Prediction:
    """A run whose accuracy was (seconds, accuracy) and so on."""
    start = RunStarted(method.name, "simulated", workers, 16, 0, 1000, None, 10, None)
    seconds = curve[-1][0]
    evaluations = [Evaluated(s, 100 * i, 0.0, {"accuracy": a}) for i, (s, a) in enumerate(curve)]
    traffic = Traffic([1], [1], [busy * seconds] * workers, [2], [0.0], [0.0], [0.0, 0.0])
    done = RunFinished(
        *(reason, seconds, seconds, 0.0, 1000, 100, [125] * workers, [12] * workers, {7: 100}, {}, 0, 0),
        {"accuracy": curve[-1][1]},
        reached,
    )
    return Prediction(label, method, workers, Run(label, (start, *evaluations, traffic, done)))


def advice(*others: Prediction, target: Target | None = None, level: float = 0.8) -> Advice:
    alone = prediction("one worker", freewheel.synchronous(0.1), (10.0, 0.5), (20.0, 0.9), workers=1)
    return Advice((alone, *others), FOUND, "accuracy", level, target, "8 workers")


def rounds(*curve: tuple[float, float], **more: Any) -> Prediction:
    return prediction("synchronous", freewheel.synchronous(0.1), *curve, **more)


def free(*curve: tuple[float, float], **more: Any) -> Prediction:
    return prediction("stale_synchronous", freewheel.stale_synchronous(3, 0.1), *curve, **more)


# --- choosing ---


def test_a_faster_asynchronous_method_is_chosen_and_said() -> None:
    found = advice(rounds((5.0, 0.6), (7.0, 1.0)), free((2.0, 0.6), (4.0, 1.0)))
    assert found.best.label == "stale_synchronous"
    first = found.words[0]
    assert first.startswith("Use stale_synchronous with 8 workers: reaches accuracy 0.8000 in 3.0 s")
    assert "2.0 times as fast as synchronous with 8 workers and 5.8 times as fast as one worker" in first
    assert any("bound=3" in line for line in found.words)


def test_a_gain_within_the_error_of_predictions_is_none() -> None:
    found = advice(rounds((1.0, 0.8), (2.0, 0.9)), free((0.9, 0.8), (2.0, 0.9)))
    assert found.best.label == "synchronous"
    assert found.words[0].startswith("Stay synchronous: synchronous with 8 workers")
    assert "1.11 times as fast, less than the 15 % by which predictions may err" in found.words[0]


def test_one_worker_is_enough_where_nothing_is_faster() -> None:
    found = advice(rounds((30.0, 0.8), (40.0, 0.9)), free((35.0, 0.8), (36.0, 0.9)))
    assert found.best.workers == 1
    assert found.words[0].startswith("Stay with one worker: one worker reaches accuracy 0.8000 in 17.5 s")
    assert "slower by 100 %" in found.words[0]


def test_a_method_that_never_gets_there_is_named() -> None:
    found = advice(rounds((1.0, 0.9), (2.0, 0.9)), free((0.1, 0.5), (0.2, 0.6)))
    assert "no asynchronous method reaches it" in found.words[0]
    assert any("Not at accuracy 0.8000 within the budget: stale_synchronous" in line for line in found.words)


def test_a_method_that_diverged_is_never_chosen() -> None:
    broken = free((0.1, 0.9), (0.2, 0.95), reason="error")
    found = advice(rounds((1.0, 0.9), (2.0, 0.9)), broken)
    assert found.best.label == "synchronous"
    assert any(line.startswith("Diverged: stale_synchronous") for line in found.words)
    assert "diverged" in str(found)


def test_nobody_at_the_level_is_said() -> None:
    found = advice(rounds((1.0, 0.5)), level=0.99)
    assert found.words[0].startswith("Undecided: no method reaches accuracy 0.9900")


def test_a_budget_in_which_only_one_worker_gets_there_says_nothing_about_several() -> None:
    found = advice(rounds((1.0, 0.5), (2.0, 0.7)), free((1.0, 0.4), (2.0, 0.6)))
    assert found.words[0].startswith("Undecided: with 1,000 samples only one worker reaches accuracy 0.8000")
    assert "more `seconds`" in found.words[0]
    assert not advice(rounds((1.0, 0.5), (2.0, 0.9))).words[0].startswith("Undecided")


def test_no_budget_is_too_short_for_several_workers_that_all_diverged() -> None:
    broken = (rounds((1.0, 0.5), reason="error"), free((1.0, 0.4), reason="error"))
    found = advice(*broken)
    assert found.words[0].startswith("Stay with one worker")
    assert any(line.startswith("Diverged: synchronous; stale_synchronous") for line in found.words)
    assert advice(*broken, free((1.0, 0.4))).words[0].startswith("Undecided")


def test_a_target_counts_when_it_held_twice() -> None:
    slow = rounds((1.0, 0.9), (2.0, 0.9), reached=1.5)
    fast = free((0.1, 0.9), (0.2, 0.9), reached=0.5)
    found = advice(slow, fast, target=("accuracy", 0.8))
    assert (found.time(slow), found.time(fast), found.time(found.predictions[0])) == (1.5, 0.5, None)
    assert "3.0 times as fast as synchronous" in found.words[0]


def test_the_time_that_synchronous_workers_wait_is_said() -> None:
    words = advice(rounds((1.0, 0.9), busy=0.62), free((0.1, 0.9))).words
    assert any("Synchronous workers compute 62 % of the time" in line for line in words)


def test_it_prints_every_method() -> None:
    said = str(advice(rounds((1.0, 0.9)), free((0.1, 0.7))))
    for words in ("one worker", "synchronous", "stale_synchronous", "0.9000", "not reached", "50 %"):
        assert words in said


# --- levels and crossings ---


@pytest.mark.parametrize(
    ("finals", "level"),
    [((0.85, 0.83), 0.83), ((0.85, 0.5), 0.85), ((0.85, 0.9), 0.85), ((0.85, 0.82, 0.81), 0.81)],
)
def test_the_level_is_the_worst_of_those_near_one_worker(finals: tuple[float, ...], level: float) -> None:
    made = [rounds((1.0, final)) for final in finals]
    assert common_level(made, "accuracy") == level


def test_without_one_worker_there_is_no_level() -> None:
    assert math.isnan(common_level([rounds((1.0, 0.9), reason="error"), free((1.0, 0.9))], "accuracy"))


def test_costs_are_crossed_from_above() -> None:
    history = [Evaluated(t, 0, 0.0, {"loss": loss}) for t, loss in ((1.0, 2.0), (3.0, 1.0), (4.0, 0.5))]
    assert crossing(history, "loss", 1.5, True) == 2.0
    assert crossing(history, "loss", 2.5, True) == 1.0
    assert crossing(history, "loss", 0.1, True) is None
    assert crossing([], "loss", 0.1, True) is None


# --- from a model to advice ---


def small(**more: Any) -> Advice:
    torch.manual_seed(0)
    options: dict[str, Any] = {"workers": 4, "network": LAN, "calibration": FOUND, "max_samples": 2_000}
    options |= {"evaluate": (X, Y), "progress": False}
    return advise(nn.Linear(8, 2), (X, Y), loss=LOSS, **{**options, **more})


def test_every_method_is_simulated_with_the_measured_times(tmp_path: Path) -> None:
    found = small()
    labels = [one.label for one in found.predictions]
    assert labels == ["one worker", *usual(Park(4, LAN), 0.02)]
    alone, together, *_ = found.predictions
    assert alone.seconds == pytest.approx(125 * 0.01)
    assert together.samples_per_second < 4 * alone.samples_per_second
    assert all(one.run.finished.samples == 2_000 for one in found.predictions)
    assert found.report(tmp_path / "advice.html").is_file()
    assert found.best.label in found.words[0]


def test_the_same_seed_gives_the_same_advice() -> None:
    assert small().words == small().words


def test_a_slow_worker_holds_synchronous_training_up() -> None:
    even, uneven = small(), small(slow={3: 4.0})
    assert uneven.predictions[1].seconds > 2.5 * even.predictions[1].seconds
    assert uneven.predictions[2].seconds < 0.7 * uneven.predictions[1].seconds  # does not wait for it


def test_the_model_is_not_changed_and_may_be_a_factory() -> None:
    model = nn.Linear(8, 2)
    before = model.weight.detach().clone()
    mine = {"mine": freewheel.downpour(0.1)}
    options: dict[str, Any] = {"calibration": FOUND, "max_samples": 320, "contestants": mine, "workers": 2}
    shared: dict[str, Any] = {"loss": LOSS, "evaluate": (X, Y), "progress": False, **options}
    advise(model, (X, Y), **shared)
    assert torch.equal(model.weight, before)
    made = advise(lambda: nn.Linear(8, 2), (X, Y), **shared)
    assert [one.label for one in made.predictions] == ["one worker", "mine"]


def test_a_method_that_diverges_is_a_result() -> None:
    found = small(contestants={"mad": freewheel.stale_synchronous(3, 1e38)})
    assert found.predictions[1].diverged
    assert found.best.label == "one worker"


def test_an_interrupt_ends_all_of_it() -> None:
    calls = []

    def evaluate(module: nn.Module) -> dict[str, float]:
        calls.append(module)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return {"accuracy": 0.5}

    with pytest.raises(KeyboardInterrupt):
        small(evaluate=evaluate)
    assert len(calls) <= 7  # one more for what there is; no further run


def test_a_target_ends_runs_early() -> None:
    found = small(target=("accuracy", 0.6), max_samples=6_000)
    assert found.target == ("accuracy", 0.6)
    assert any(one.run.finished.reason == "target" for one in found.predictions)


def test_a_target_that_nobody_reaches_is_replaced_by_a_level() -> None:
    found = small(target=("accuracy", 1.0), max_samples=320)
    assert found.target is None
    assert found.level < 1.0


def test_hogwild_needs_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freewheel.park.cores", lambda: 2)
    assert "hogwild" in usual(Park(2), 0.1)
    assert "hogwild" not in usual(Park(2, LAN), 0.1)
    assert "hogwild" not in usual(Park(3), 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "`workers` must be a whole number >= 1, got 0"),
        ({"network": 5}, "`network` must be a freewheel.simulation.Network, got 5"),
        ({"slow": {4: 2.0}}, "`slow` names worker 4, but there are 4"),
        ({"contestants": {}}, "`contestants` must be a dictionary"),
        ({"contestants": {"a": "hogwild"}}, "`contestants` must be a dictionary"),
        ({"seconds": -1}, "`seconds` must be a number > 0"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        small(**arguments)

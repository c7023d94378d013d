"""Comparisons: equal budgets, fresh processes, nothing left behind."""

from __future__ import annotations

import html
import json
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import freewheel
from freewheel import fresh_process
from freewheel.compare import INDEX, interleaved, recorded
from freewheel.errors import ConfigurationError, TrainingError
from freewheel.events import Evaluated, Evaluating, Event, RunFinished, RunStarted, Tick, to_json
from freewheel.fresh_process import Entry
from freewheel.scoreboard import Standing

SEEDS = (3, 4)


def examples(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


def linear() -> nn.Module:
    return nn.Linear(4, 2)


def record(method: str, seed: int, rate: float = 100.0, reason: str = "epochs") -> list[Event]:
    """The events of a run of 1,000 samples that took 1000 / rate seconds."""
    seconds = 1000 / rate
    metrics = {"accuracy": 0.8, "loss": 0.5}
    start = RunStarted(method, "threads", 2, 16, seed, 1000, None, 10, None)
    finished = RunFinished(
        reason,
        seconds,
        seconds,
        2 * seconds,
        1000,
        63,
        [500, 500],
        [32, 31],
        {0: 63},
        {},
        100,
        50,
        metrics,
        None,
    )
    return [
        start,
        Tick(seconds, [500, 500], 0.5, 0.0, 100, 1.0),
        Evaluated(seconds, 1000, 1.0, metrics),
        finished,
    ]


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary folders are made in."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


Ran = list[tuple[Entry, Path]]


@pytest.fixture
def fake(private: Path, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs leave a record at once, instead of training in another process."""
    ran: Ran = []

    def run(entry: Entry, payload: Path, out: Path, keep: bool, listen: Callable[[Event], None]) -> None:
        assert stat.S_IMODE(payload.parent.stat().st_mode) == 0o700
        ran.append((entry, out))
        out.mkdir(parents=True)
        method = entry.label if entry.label == "hogwild" else "synchronous"
        events = record(method, entry.seed, rate={"hogwild": 200, "fast": 150}.get(entry.label, 100))
        (out / "events.jsonl").write_text("".join(to_json(event) + "\n" for event in events))
        for event in events:
            listen(event)

    monkeypatch.setattr(fresh_process, "run", run)
    return ran


def compare(**arguments: Any) -> freewheel.Comparison:
    given: dict[str, Any] = {
        "contestants": ["hogwild", "synchronous"],
        "loss": nn.CrossEntropyLoss(),
        "seeds": SEEDS,
        "progress": False,
        **arguments,
    }
    return freewheel.compare(linear, examples(), **given)


# --- the order, the results, the display: no process is started ---


def test_every_contestant_runs_once_with_every_seed_in_rotating_order() -> None:
    order = interleaved(["a", "b", "c"], [0, 1])
    assert [(entry.label, entry.seed) for entry in order] == [
        *(("a", 0), ("b", 0), ("c", 0)),
        *(("b", 1), ("c", 1), ("a", 1)),
    ]


def test_summary_has_a_row_for_each_contestant_and_the_verdict_a_winner(fake: Ran) -> None:
    comparison = compare()
    hogwild, synchronous = comparison.summary()
    assert (hogwild.label, hogwild.runs, synchronous.label) == ("hogwild", 2, "synchronous")
    assert hogwild.samples_per_second.median == 200
    assert tuple(synchronous.seconds) == (10, 10, 10)
    assert synchronous.cpu_seconds.median == 20
    assert hogwild.value.median == 0.8
    assert hogwild.reached == 0
    assert "2.00 times as fast" in comparison.verdict[0]
    assert "hogwild" in str(comparison)
    assert comparison.verdict[0] in str(comparison)


def test_without_a_run_dir_nothing_is_left_behind(fake: Ran, private: Path) -> None:
    compare()
    assert len(fake) == 4
    assert list(private.iterdir()) == []


def test_a_kept_comparison_can_be_read_again(fake: Ran, tmp_path: Path) -> None:
    comparison = compare(run_dir=tmp_path / "kept")
    again = recorded(tmp_path / "kept")
    assert again is not None
    assert [(run.label, run.started.seed) for run in again.runs] == [
        (run.label, run.started.seed) for run in comparison.runs
    ]
    assert again.verdict == comparison.verdict
    assert (tmp_path / "kept" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html")
    assert recorded(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"runs": []}', '{"runs": [3]}', '{"runs": [], "baseline": 3}'])
def test_a_damaged_index_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(freewheel.DataError, match="damaged"):
        recorded(tmp_path)


def test_a_folder_that_holds_runs_is_refused_before_anything_runs(fake: Ran, tmp_path: Path) -> None:
    compare(run_dir=tmp_path / "kept")
    fake.clear()
    with pytest.raises(ConfigurationError, match="holds a run already"):
        compare(run_dir=tmp_path / "kept", seeds=(9, 3))
    assert fake == []


def test_labels_that_make_the_same_folder_name_stay_apart(fake: Ran, tmp_path: Path) -> None:
    compare(contestants={"a/b": "hogwild", "a b": "synchronous"}, run_dir=tmp_path / "kept")
    assert len({out for _, out in fake}) == 4
    assert {out.parent for _, out in fake} == {tmp_path / "kept"}


def test_an_interrupted_comparison_has_the_runs_that_ended(
    fake: Ran, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fresh_process.run

    def interrupted(entry: Entry, *rest: Any) -> None:
        if len(fake) == 3:
            raise KeyboardInterrupt
        run(entry, *rest)

    monkeypatch.setattr(fresh_process, "run", interrupted)
    comparison = compare()
    assert comparison.interrupted
    assert len(comparison.runs) == 3
    assert list(private.iterdir()) == []


def test_an_interrupt_before_the_first_end_is_passed_on(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fresh_process, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare()
    assert list(private.iterdir()) == []


def test_progress_names_every_run(fake: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    compare(progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert "1/4 hogwild, seed 3: starting" in said.err
    assert "4/4 hogwild, seed 4: done, accuracy 0.8000, 200/s, 5.0 s" in said.err


def test_a_standing_says_that_the_model_is_being_evaluated() -> None:
    start, tick, evaluated, finished = record("hogwild", 3)
    trained = Standing().after(start).after(tick)
    evaluating = trained.after(Evaluating())
    assert evaluating.words().endswith(", evaluating")
    for after in (trained, evaluating.after(evaluated), evaluating.after(tick), evaluating.after(finished)):
        assert "evaluating" not in after.words()


def test_the_baseline_is_the_one_that_was_named(fake: Ran) -> None:
    contestants = {"hogwild": "hogwild", "synchronous": "synchronous", "synchronous, 2": "synchronous"}
    assert (
        "as fast as synchronous, 2 " in compare(contestants=contestants, baseline="synchronous, 2").verdict[0]
    )


def test_a_kept_comparison_has_the_verdict_of_its_baseline_everywhere(fake: Ran, tmp_path: Path) -> None:
    def judged(baseline: str | None) -> list[str]:
        folder = tmp_path / f"baseline {baseline}"
        comparison = compare(contestants=CONTESTANTS, baseline=baseline, run_dir=folder)
        page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
        assert comparison.verdict[0] in page
        again = recorded(folder)
        assert again is not None
        assert again.baseline == baseline
        assert again.verdict == comparison.verdict
        return comparison.verdict

    assert "as fast as slow " in judged("slow")[0]
    assert "as fast as fast " in judged(None)[0]


CONTESTANTS = {"hogwild": "hogwild", "slow": "synchronous", "fast": "synchronous"}


@pytest.mark.parametrize("kind", [TrainingError, freewheel.DataError])
@pytest.mark.parametrize("keep", [True, False])
def test_a_run_that_fails_loses_no_run_that_had_finished(
    fake: Ran,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: bool,
    kind: type[freewheel.FreewheelError],
) -> None:
    run = fresh_process.run

    def fails(entry: Entry, *rest: Any) -> None:
        if len(fake) == 3:
            raise kind("the fourth run is cursed")
        run(entry, *rest)

    monkeypatch.setattr(fresh_process, "run", fails)
    kept = tmp_path / "kept" if keep else None
    with pytest.raises(kind, match="the fourth run is cursed") as caught:
        compare(run_dir=kept, baseline="synchronous")
    comparison = caught.value.comparison
    assert comparison is not None
    assert comparison.interrupted
    assert comparison.baseline == "synchronous"
    finished = [(run.label, run.started.seed) for run in comparison.runs]
    assert finished == [("hogwild", 3), ("synchronous", 3), ("synchronous", 4)]
    assert "hogwild with seed 3, synchronous with seed 3, synchronous with seed 4;" in str(caught.value)
    assert (f"kept in {kept}" in str(caught.value)) is keep
    if kept is not None:
        again = recorded(kept)
        assert again is not None
        assert len(again.runs) == 3


def test_a_first_run_that_fails_has_nothing_to_keep(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise TrainingError("cursed")

    monkeypatch.setattr(fresh_process, "run", fails)
    with pytest.raises(TrainingError, match=r"^cursed$") as caught:
        compare()
    assert caught.value.comparison is None


# --- what is refused, before any process is started ---


def generator() -> Any:
    return (number for number in range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contestants": []}, "at least one"),
        ({"contestants": "hogwild"}, "dictionary label -> method"),
        ({"contestants": ["hogwild", "hogwild"]}, "same name"),
        ({"contestants": ["hogwid"]}, "hogwild, synchronous"),
        ({"contestants": {"a": {"method": "hogwild", "max_samples": 10}}}, "budget"),
        ({"contestants": {"a": {"method": "hogwild", "epochs": 10}}}, "budget"),
        ({"contestants": {"a": {"seed": 1}}}, "may differ in method"),
        ({"contestants": {"a": {"workers": 0}}}, "contestant 'a': `workers`.*got 0"),
        ({"contestants": {"a": {"engine": "steam"}}}, "contestant 'a'.*serial"),
        ({"seeds": []}, "one or more different"),
        ({"seeds": [1, 1]}, "one or more different"),
        ({"seeds": 3}, r"range\(3\)"),
        ({"baseline": "nobody"}, "hogwild, synchronous"),
        ({"baseline": "hogwild"}, "must be a synchronous contestant"),
        ({"seed": 3}, "use seeds="),
        ({"monitors": [print]}, "other processes"),
        ({"leraning_rate": 3}, "`leraning_rate` is no argument"),
        ({"evaluate": generator()}, "`evaluate` cannot be sent"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(fake: Ran, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        compare(**arguments)
    assert fake == []


# --- real processes ---


def test_two_methods_in_fresh_processes_with_a_local_class_and_a_lambda(
    private: Path, tmp_path: Path
) -> None:
    here = os.getpid()

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            if os.getpid() == here:
                raise RuntimeError("the model was made in the parent")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)  # type: ignore[no-any-return]

    comparison = freewheel.compare(
        lambda: Local().train(),
        examples(),
        contestants={"free": {"method": freewheel.hogwild(lr=0.1), "workers": 2}, "serial": "synchronous"},
        seeds=[5],
        progress=False,
        run_dir=tmp_path / "kept",
        loss=lambda prediction, target: nn.functional.cross_entropy(prediction, target).mean(),
        evaluate=examples(32),
        batch_size=8,
        epochs=2,
    )
    assert [(run.label, run.started.seed, run.started.workers) for run in comparison.runs] == [
        ("free", 5, 2),
        ("serial", 5, 1),
    ]
    assert all(run.complete and run.finished.samples == 128 for run in comparison.runs)
    assert all(row.cpu_seconds.median > 0 for row in comparison.summary())
    assert (tmp_path / "kept" / "free-seed5" / "weights.safetensors").is_file()
    assert json.loads((tmp_path / "kept" / "serial-seed5" / "config.json").read_text())["seed"] == 5
    assert list(private.iterdir()) == []


def test_a_run_that_fails_says_which_where_and_why(private: Path) -> None:
    calls = []

    def explode_later(module: nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:
            raise LookupError("the fourth batch is cursed")
        return module(batch[0]).sum()  # type: ignore[no-any-return]

    with pytest.raises(TrainingError) as caught:
        freewheel.compare(
            linear,
            examples(),
            contestants=["synchronous"],
            seeds=[7],
            progress=False,
            step=explode_later,
            batch_size=4,
        )
    for part in (
        "'synchronous' with seed 7",
        "the fourth batch is cursed",
        "in explode_later",
        "engine='serial'",
    ):
        assert part in str(caught.value)
    assert list(private.iterdir()) == []


def test_a_process_that_dies_says_how(private: Path) -> None:
    def die() -> nn.Module:
        print("last words", flush=True)
        os._exit(7)

    with pytest.raises(
        TrainingError, match=r"(?s)'synchronous' with seed 0 ended with exit code 7.*last words"
    ):
        freewheel.compare(
            die,
            examples(),
            contestants=["synchronous"],
            seeds=[0],
            progress=False,
            loss=nn.CrossEntropyLoss(),
        )


def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    payload = tmp_path / "payload.pickle"
    arguments = {"loss": nn.CrossEntropyLoss(), "max_seconds": 250.0}
    contestants = {"a": {"method": "hogwild"}}
    fresh_process.pack(
        payload, {"model": linear, "data": examples(), "arguments": arguments, "contestants": contestants}
    )
    before = set(psutil.Process().children())  # a fork server of other tests
    children: list[psutil.Process] = []

    def interrupt(event: Event) -> None:
        children.extend(set(psutil.Process().children()) - before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fresh_process.run(Entry("a", 0), payload, tmp_path / "out", False, interrupt)
    assert children
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)

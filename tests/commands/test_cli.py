"""The command: what it prints, what it writes, how it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from invoked import run, runner

import freewheel
from freewheel import cli
from freewheel.cli import app
from freewheel.commands import compare as compare_command
from freewheel.commands import demo as demo_command
from freewheel.commands import train as train_command
from freewheel.commands.report import gather
from freewheel.comparison import Comparison
from freewheel.errors import TrainingError
from freewheel.events import Evaluated, Event, RunFinished, RunStarted, to_json
from freewheel.report import Run

pytestmark = pytest.mark.usefixtures("folder")

TINY = ("--model", "mlp", "--max-samples", "320", "--workers", "2")


def test_train_in_processes(folder: Path) -> None:
    run("train", "images", *TINY, "--engine", "processes", "--run-dir", "run")
    begin = json.loads((folder / "run" / "events.jsonl").read_text().splitlines()[0])
    assert (begin["engine"], begin["workers"]) == ("processes", 2)


def record(method: str, seed: int = 0, batch_size: int = 16) -> list[Event]:
    start = RunStarted(method, "threads", 2, batch_size, seed, 1000, None, 10, None)
    rate = 2.0 if method == "hogwild" else 1.0
    metrics = {"accuracy": 0.8}
    finished = RunFinished(
        "epochs", 8 / rate, 9.0, 8.0, 1000, 63, [1000], [63], {0: 63}, {}, 100, 50, metrics, None
    )
    return [start, Evaluated(8 / rate, 1000, 1.0, metrics), finished]


def write_run(folder: Path, events: Iterable[Event]) -> Path:
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text("".join(to_json(event) + "\n" for event in events))
    return folder


def test_train_images_prints_a_table_and_writes_the_folder(folder: Path) -> None:
    said = run("train", "images", *TINY)
    (made,) = (folder / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-images-hogwild", made.name)
    assert {path.name for path in made.iterdir()} == {
        "config.json",
        "events.jsonl",
        "report.html",
        "weights.safetensors",
    }
    assert re.search(r"Samples\s+│?\s*320", said)
    assert "hogwild, 2 workers" in said
    assert str(Path("runs") / made.name / "report.html") in said


def test_train_text_ends_with_a_text(folder: Path) -> None:
    said = run("train", "text", "--max-samples", "4096", "--run-dir", "here", "--workers", "1")
    assert "Bits per character" in said
    assert "A text by this model" in said
    assert "ROMEO:" in said
    assert (folder / "here" / "weights.safetensors").is_file()


def test_every_option_reaches_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fit(model: Any, data: Any, **arguments: Any) -> Any:
        given.update(arguments)
        raise TrainingError("enough seen")

    monkeypatch.setattr(train_command, "fit", fit)
    options = (
        "--method synchronous --engine serial --workers 3 --model mlp --batch-size 5 --lr 0.5 --momentum 0.25"
        " --granularity layer --epochs 2 --max-seconds 9 --max-samples 90 --target accuracy=0.75"
        " --evaluate-every 30 --seed 4 --intra-op-threads 2 --precision bf16 --run-dir x"
    )
    run("train", "images", *options.split(), code=1)
    wanted = {
        **{"engine": "serial", "workers": 3, "batch_size": 5, "epochs": 2, "max_seconds": 9.0},
        **{"max_samples": 90, "target": ("accuracy", 0.75), "evaluate_every": 30, "seed": 4},
        **{"intra_op_threads": 2, "precision": "bf16", "run_dir": Path("x")},
    }
    assert {name: given[name] for name in wanted} == wanted
    assert given["method"].name == "synchronous"
    assert given["method"].granularity == "layer"
    assert given["method"].rule_for(1).describe.startswith("sgd(lr=annealed(lr=0.5), momentum=0.25")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train sounds", "must be one of images, text, got 'sounds'"),
        ("train images --model lstm", "--model for images must be one of cnn, mlp"),
        ("train text --model cnn", "--model for text must be one of lstm"),
        ("train images --data nothing", "--data for images must be one of fashion-mnist-small"),
        ("train images --method hogwil", "--method .* must be one of hogwild, synchronous"),
        ("train images --engine steam", "--engine must be one of serial, threads"),
        ("train images --workers 0", "--workers must be .*got 0"),
        ("train images --workers many", "--workers must be a whole number >= 1 or 'auto', got 'many'"),
        ("train images --target 0.9", "--target must be METRIC=NUMBER"),
        ("train images --target precision=0.9", "--target for images must be one of accuracy, loss"),
        ("train images --batch-size 0", "--batch-size must be >= 1, got 0"),
        ("train images --epochs 0", "--epochs must be .*got 0"),
        ("train images --seed -1", "--seed must be .*got -1"),
        ("train images --schedule cosine --max-seconds 3", "--schedule 'cosine' needs a known end"),
        ("train images --granularity cell", "--granularity must be 'model' or 'layer'"),
        ("train images --lr -1", "--lr must be .*got -1"),
        ("compare images --methods hogwild,hogwild", "names a method twice"),
        ("compare images --methods ,", "at least one"),
        ("compare images --methods sync", "must be one of hogwild, synchronous"),
        ("compare images --seeds 0", "--seeds must be >= 1"),
        ("data fetch nothing", "fashion-mnist-small, tiny-shakespeare"),
        ("report nowhere", "no run was recorded in nowhere"),
    ],
)
def test_a_refusal_is_one_line_on_standard_error_and_code_2(
    folder: Path, arguments: str, message: str
) -> None:
    result = runner.invoke(app, arguments.split())
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert re.search(message, lines[0]), lines[0]
    assert "Traceback" not in result.output
    assert not list(folder.glob("runs/*/events.jsonl"))


def test_a_refusal_shows_its_traceback_with_debug() -> None:
    result = runner.invoke(app, ["--debug", "train", "images", "--model", "lstm"])
    assert isinstance(result.exception, freewheel.ConfigurationError)


def test_an_unknown_option_is_refused() -> None:
    assert "--worker-count" in run("train", "images", "--worker-count", "3", code=2)


def test_an_interrupt_outside_of_training_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_command, "fit", interrupted)
    assert "Interrupted" in run("train", "images", *TINY, code=130)


def test_an_interrupted_training_writes_everything_and_is_code_130(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(console: Any) -> Any:
        def monitor(event: Event) -> None:
            if isinstance(event, Evaluated):
                raise KeyboardInterrupt

        return monitor

    monkeypatch.setattr(train_command, "progress", progress)
    said = run("train", "images", *TINY, "--evaluate-every", "100", "--run-dir", "cut", code=130)
    assert "interrupted" in said
    assert (folder / "cut" / "weights.safetensors").is_file()
    assert (folder / "cut" / "report.html").is_file()


def test_sigterm_ends_a_training_as_ctrl_c_does_with_code_143(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(console: Any) -> Any:
        def monitor(event: Event) -> None:
            if isinstance(event, Evaluated) and event.samples < 320:
                signal.raise_signal(signal.SIGTERM)

        return monitor

    monkeypatch.setattr(train_command, "progress", progress)
    said = run("train", "images", *TINY, "--evaluate-every", "100", "--run-dir", "cut", code=143)
    assert re.search(r"Ended by\s+│?\s*interrupted", said)
    assert (folder / "cut" / "weights.safetensors").is_file()
    assert (folder / "cut" / "report.html").is_file()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_outside_of_training_is_code_143(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_command, "fit", lambda *a, **k: signal.raise_signal(signal.SIGTERM))
    assert "Interrupted" in run("train", "images", *TINY, code=143)


def test_a_parent_that_has_sigterm_ignored_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        raise TrainingError("went on")

    monkeypatch.setattr(train_command, "fit", fit)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert "went on" in run("train", "images", *TINY, code=1)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_compare_prints_table_verdict_and_report(folder: Path) -> None:
    said = run("compare", "images", *TINY, "--seeds", "1", "--run-dir", "both")
    assert re.search(r"CPU +Peak", said)
    assert "one pair of runs" in said
    assert "1/2 hogwild, seed 0: done, accuracy" in said
    assert (folder / "both" / "report.html").is_file()
    assert (folder / "both" / "synchronous-seed0" / "weights.safetensors").is_file()
    assert "Report: both/report.html" in run("report", "both", "--png")
    assert list((folder / "both" / "report-figures").glob("*.png"))


def comparison(interrupted: bool = False) -> Comparison:
    runs = [Run(method, record(method, seed)) for seed in (0, 1) for method in ("hogwild", "synchronous")]
    return Comparison(tuple(runs), interrupted=interrupted)


def test_an_interrupted_comparison_shows_what_it_has_and_is_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_command, "run_comparison", lambda *a, **k: comparison(interrupted=True))
    said = run("compare", "images", code=130)
    assert "2.00 times as fast" in said
    assert "Interrupted" in said


def test_the_demo_compares_the_cnn_with_equal_budgets_and_makes_the_report(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def compare(model: Any, data: Any, **arguments: Any) -> Comparison:
        given.update(arguments, model=model, data=data)
        return comparison()

    monkeypatch.setattr(demo_command, "compare", compare)
    said = run("demo")
    assert sum(p.numel() for p in given["model"]().parameters()) == 421_642
    assert len(given["data"]) == 10_000
    assert {label: method.name for label, method in given["contestants"].items()} == {
        "hogwild": "hogwild",
        "synchronous": "synchronous",
    }
    assert (given["workers"], given["max_samples"], list(given["seeds"])) == ("auto", 30_000, [0, 1])
    assert "2.00 times as fast" in said
    assert (folder / "runs" / "demo" / "report.html").is_file()
    assert list((folder / "runs" / "demo" / "report-figures").glob("*.png"))


def test_report_of_one_run_is_written_into_its_folder(folder: Path) -> None:
    write_run(folder / "one", record("hogwild"))
    assert "one/report.html" in run("report", "one")
    assert (folder / "one" / "report.html").is_file()


def test_report_of_several_runs_is_a_comparison(folder: Path) -> None:
    write_run(folder / "a", record("hogwild"))
    write_run(folder / "b", record("synchronous"))
    said = run("report", "a", "b", "-o", "both.html")
    assert "2.00 times as fast" in said
    assert (folder / "both.html").is_file()


def test_report_of_a_comparison_judges_by_its_baseline(folder: Path) -> None:
    names = ["hogwild", "synchronous", "synchronous large"]
    for name in names:
        write_run(folder / "kept" / name, record(name))
    index = {"runs": [{"folder": name, "label": name} for name in names], "baseline": names[2]}
    (folder / "kept" / "comparison.json").write_text(json.dumps(index))
    said = run("report", "kept")
    assert f"as fast as {names[2]} in" in said
    page = (folder / "kept" / "report.html").read_text(encoding="utf-8")
    assert said.splitlines()[0].split(" (")[0] in page


def test_repeats_share_a_label_and_unlike_runs_do_not(folder: Path) -> None:
    first = write_run(folder / "first", record("hogwild", 0))
    again = write_run(folder / "again", record("hogwild", 1))
    other = write_run(folder / "other", record("hogwild", 0, batch_size=64))
    assert [run.label for run in gather([first, again])] == ["hogwild", "hogwild"]
    assert [run.label for run in gather([first, again, other])] == [
        "hogwild (first)",
        "hogwild (first)",
        "hogwild (other)",
    ]


def test_data_list_and_fetch() -> None:
    said = run("data", "list")
    for word in ("fashion-mnist-small", "in the package", "MIT", "cifar10", "public domain"):
        assert word in said
    assert "tiny-shakespeare is in" in run("data", "fetch", "tiny-shakespeare")


def test_data_list_says_how_to_fetch_what_is_not_here(cache: Path) -> None:
    assert "freewheel data fetch cifar10" in run("data", "list")


def test_version_and_help() -> None:
    assert run("--version") == f"freewheel {freewheel.__version__}\n"
    for command in ("train", "compare", "simulate", "advise", "report", "demo", "data"):
        assert command in run("--help")
        assert f"freewheel {command}" in run(command, "--help") or command == "demo"


def test_debug_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["freewheel", "train", "images", "--model", "lstm", "--debug"])
    with pytest.raises(freewheel.ConfigurationError):
        cli.main()


def test_importing_freewheel_loads_nothing_that_only_commands_and_reports_need() -> None:
    code = (
        "import sys, freewheel;"
        " print([m for m in ('typer', 'rich', 'matplotlib', 'jinja2', 'cloudpickle') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_comparisons_stands_for_its_newest(tmp_path: Path) -> None:
    from freewheel.commands.report import _latest

    for name in ("20260101-000000", "20260102-000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "comparison.json").write_text("{}")
    assert _latest(tmp_path) == tmp_path / "20260102-000000"
    assert _latest(tmp_path / "20260101-000000") == tmp_path / "20260101-000000"
    assert _latest(tmp_path / "none") == tmp_path / "none"

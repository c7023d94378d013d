"""``freewheel simulate``: what the options describe is what is simulated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from invoked import run, runner

from freewheel import Simulated
from freewheel.calibration import Calibration, Measurement
from freewheel.cli import app
from freewheel.commands import simulate as command
from freewheel.commands import simulation_options as sim
from freewheel.engines.costs import ServerSeconds
from freewheel.errors import ConfigurationError, TrainingError
from freewheel.simulation import Network, ServerCost, as_times, constant, die, lognormal, lose, measured, slow

pytestmark = pytest.mark.usefixtures("folder")

TINY = ("simulate", "images", "--model", "mlp", "--max-samples", "640")
FOUND = Calibration((Measurement(1, (0.02, 0.03), 16.0, 0.0),), ServerSeconds(0.004, 0.001), 10, 2, "hogwild")


def simulated(options: str) -> str:
    return run(*TINY, *options.split())


def engine(workers: int = 4, wires: sim.Wires | None = None, **times: Any) -> Simulated:
    return sim.engine_of(sim.Times(**times), wires or sim.Wires(), [], workers, lambda: FOUND)


def test_it_prints_the_prediction_and_writes_the_folder(folder: Path) -> None:
    said = simulated("--workers 4 --step-time 10ms --latency 5ms --target loss=0.1 --run-dir here")
    for words in (
        "stale_synchronous, 4 workers",
        "Predicted time ",
        r"Predicted time to target\s+│\s+not reached",
        r"Samples\s+│\s+640",
        "Workers computing",
        "Pushed per worker",
        "Traffic per server",
        "Mean staleness",
        "The simulation took",
    ):
        assert re.search(words, said), words
    files = {path.name for path in (folder / "here").iterdir()}
    assert files == {"config.json", "events.jsonl", "report.html", "weights.safetensors"}
    config = json.loads((folder / "here" / "config.json").read_text())
    assert (config["times"], config["network"][:4]) == ("constant(0.01)", "5 ms")


def test_the_predicted_time_is_that_of_the_options() -> None:
    said = simulated("--method hogwild --workers 4 --step-time 10ms")
    assert re.search(r"Predicted time\s+│\s+0.100 s", said)  # 40 steps of 4 workers
    said = simulated("--method synchronous --workers 4 --step-time 10ms --slow 4x:1")
    assert re.search(r"Predicted time\s+│\s+0.400 s", said)


def test_every_option_reaches_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def fit(model: Any, data: Any, **arguments: Any) -> Any:
        given.update(arguments)
        raise TrainingError("enough seen")

    monkeypatch.setattr(command, "fit", fit)
    options = (
        "--workers 8 --step-time 10ms --spread 0.3 --stragglers 2 --slowdown 3 --latency 1ms"
        " --bandwidth 8Mbit/s --shared-bandwidth 80Mbit/s --server-time 1ms --shards 2 --die 3:10:2s"
        " --lose 0.01 --compression half --in-flight 1 --set bound=5 --seed 4"
    )
    run(*TINY, *options.split(), code=1)
    assert given["engine"] == Simulated(
        slow(lognormal(0.01, 0.3), {6: 3.0, 7: 3.0}),
        Network(0.001, 1e6, 1e7),
        ServerCost(seconds_per_push=1e-3),
        (die(3, 10, 2.0), lose(0.01)),
    )
    assert (given["workers"], given["shards"], given["seed"]) == (8, 2, 4)
    assert given["method"].settings["bound"] == 5
    assert given["method"].in_flight == 1
    assert given["method"].compression.describe == "half()"


def test_without_a_step_time_it_is_measured_less_the_servers_part() -> None:
    made = engine()
    assert made.times == measured([0.02 - 0.005, 0.03 - 0.005])
    assert made.server == ServerCost(0.004, 0.001)
    assert engine(wires=sim.Wires(server_time="1ms")).server == ServerCost(0.001)
    assert as_times(engine(spread=0.5).times).describe == "lognormal(0.02, 0.5)"


def test_a_step_time_needs_no_measuring() -> None:
    def never() -> Calibration:
        raise AssertionError("measured all the same")

    made = sim.engine_of(sim.Times(step_time="5ms"), sim.Wires(), [], 2, never)
    assert (made.times, made.server) == (constant(0.005), ServerCost())


def test_times_come_from_a_recorded_run(tmp_path: Path) -> None:
    steps = {"worker": [0, 0], "sequence": [0, 1], "lease": [0, 1], "samples": [1, 1], "loss": [1.0, 1.0]}
    line = {"event": "Steps", **steps, "staleness": [0, 0], "seconds": [1.0, 3.5]}
    (tmp_path / "events.jsonl").write_text(json.dumps(line) + "\n")
    assert as_times(engine(times_from=str(tmp_path)).times).sampler(0, 0)(0.0) == 2.5


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"stragglers": 5}, "`stragglers` must be 0 to 4"),
        ({"stragglers": 1, "slow": ["2x:3"]}, "`slow` names worker 3 twice"),
        ({"times_from": "x", "step_time": "1ms"}, "`times_from` has the times already"),
        ({"step_time": "10"}, "without a unit"),
        ({"step_time": "1ms", "slow": ["0x:1"]}, "`factors` must be a number > 0"),
    ],
)
def test_contradictions_are_refused(times: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        engine(**times)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--workers 0", "--workers must be a whole number >= 1, got 0"),
        ("--workers 2 --slow 4x:2", "names worker 2, but there are 2"),
        ("--workers 2 --die 2:100", "names worker 2, but there are 2"),
        ("--method hogwild --latency 5ms", "reads the live weights"),
        ("--shards 0", "--shards"),
        ("--set bond=3", "--set names 'bond'"),
        ("--method hogwild --in-flight 1", "names 'in_flight', which is no setting; hogwild has"),
    ],
)
def test_a_refusal_is_one_line_and_code_2(options: str, message: str) -> None:
    result = runner.invoke(app, [*TINY, "--step-time", "1ms", *options.split()])
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert not Path("runs").exists()


def test_deaths_are_printed_as_they_are_written_and_not_as_pictures() -> None:
    assert "3:250:5s" in run("simulate", "--help")
    assert "3:100:5s, got ''" in run("simulate", "images", "--die", "3", code=2)
    assert "runs/a:100:b" in simulated("--workers 2 --step-time 10ms --run-dir runs/a:100:b")


def test_it_says_so_when_workers_took_too_few_steps() -> None:
    few = simulated("--workers 20 --step-time 10ms")
    assert "Note: 2.0 steps for each worker say little of how well so many learn; give more --epochs" in few
    assert "Note" not in simulated("--workers 4 --step-time 10ms")
    assert "Note" not in simulated("--workers 1 --step-time 10ms")


def test_it_says_so_when_the_loss_grew() -> None:
    grown = simulated("--workers 8 --step-time 10ms --evaluate-every 64 --lr 1 --momentum 0.5")
    assert re.search(
        r"Note: the loss grew from \S+ to \S+, at a mean staleness of \S+; give a lower --lr", grown
    )

"""Reports of simulated runs: utilisation, traffic, and times that are said to be predicted."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from matplotlib.patches import Rectangle
from synthetic_runs import events, finished, simulated, started, traffic

from freewheel import report
from freewheel.events import RunFinished
from freewheel.report import Run, tables
from freewheel.report.traffic import MOST_BARS, beside, described, figures

NAMES = ["worker_utilisation", "server_utilisation", "traffic"]


def one(workers: int = 2, shards: int = 2) -> Run:
    return Run("mine", simulated(workers, shards))


def heights(run: Run, name: str) -> list[float]:
    return [bar.get_height() for bar in figures([run])[name].axes[0].patches if isinstance(bar, Rectangle)]


def words(runs: list[Run]) -> str:
    return re.sub(
        r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", report.render(runs), flags=re.DOTALL)
    )


def test_a_simulated_run_has_its_plots_after_the_others_and_no_memory() -> None:
    assert list(report.figures([one()]))[-4:] == ["staleness", *NAMES]


@pytest.mark.parametrize("runs", [[Run("a", events())], [one(), one()], [Run("a", simulated()[:-2])]])
def test_other_runs_have_none_of_them(runs: list[Run]) -> None:
    assert not set(NAMES) & set(report.figures(runs))
    assert runs[0].traffic is None or len(runs) > 1


def test_a_few_workers_have_a_bar_each() -> None:
    assert heights(one(3, 4), "worker_utilisation") == pytest.approx([90, 70, 50])
    assert heights(one(3, 4), "server_utilisation") == pytest.approx([25, 50, 75, 100])
    assert heights(one(3, 4), "traffic") == pytest.approx([1, 2, 3, 3, 6, 9])


def test_a_thousand_workers_become_a_histogram() -> None:
    run = one(workers=1000, shards=100)
    counts = heights(run, "worker_utilisation")
    assert (len(counts), sum(counts)) == (MOST_BARS, 1000)
    assert counts[:7] == [0] * 7  # nobody below 30 %
    assert min(counts[8:21]) > 60
    assert sum(heights(run, "server_utilisation")) == 100
    assert heights(run, "server_utilisation")[-1] > 0  # who is busy all the time is in the last bin
    assert sum(heights(run, "traffic")) == 2 * 1000
    titles = {name: figure.texts[0].get_text() for name, figure in figures([run]).items()}
    assert titles["worker_utilisation"] == "Workers computing: number of workers"


def test_the_tables_have_a_row_each_for_a_few() -> None:
    table = beside("worker_utilisation", [one(2, 2)])
    assert table is not None
    assert table.rows == [
        ["worker 0", "90.0 %", "1.0 MiB", "3.0 MiB"],
        ["worker 1", "60.0 %", "2.0 MiB", "6.0 MiB"],
    ]
    assert table.note == ""
    servers = beside("server_utilisation", [one(2, 2)])
    assert servers is not None
    assert servers.rows == [
        ["shard 0", "50.0 %", "1.0 GiB", "0.00"],
        ["shard 1", "100.0 %", "1.0 GiB", "2.50"],
        ["link to the servers", "25.0 %", "", ""],
        ["link from the servers", "50.0 %", "", ""],
    ]


def test_a_link_that_was_never_busy_is_left_out() -> None:
    made = simulated()
    made[-2] = replace(traffic(), link_busy_s=[0.0, 0.0])
    table = beside("server_utilisation", [Run("mine", made)])
    assert table is not None
    assert [row[0] for row in table.rows] == ["shard 0", "shard 1"]


def test_the_tables_of_a_thousand_have_quantiles() -> None:
    run = one(workers=1001)
    for table in (beside("traffic", [run]), tables.workers(run)):
        assert table is not None
        assert [row[0] for row in table.rows] == [
            "least",
            "lower quartile",
            "median",
            "upper quartile",
            "most",
        ]
        assert table.note == "Over 1,001 workers, each column for itself."
    table = beside("traffic", [run])
    assert table is not None
    assert [row[2] for row in table.rows] == ["1.0 MiB", "251.0 MiB", "501.0 MiB", "751.0 MiB", "1001.0 MiB"]
    assert len(report.render([run])) < 300_000


def test_the_plots_are_described_in_words() -> None:
    run = one(2, 2)
    assert described("worker_utilisation", [run]) == "Median 75.0 %, from 60.0 % to 90.0 %."
    assert described("server_utilisation", [run]) == "Median 75.0 %, from 50.0 % to 100.0 %."
    assert described("traffic", [run]) == "Pushed 3.0 MiB, pulled 9.0 MiB in all."
    assert (described("memory", [run]), beside("memory", [run]), beside("traffic", [Run("a", events())])) == (
        "",
        None,
        None,
    )


def test_times_are_said_to_be_predicted() -> None:
    text = words([one(100)])
    assert "freewheel · Simulated run" in text
    assert "100 simulated workers" in text
    assert re.search(r"in a predicted \d", text)
    assert re.search(r"Predicted time [\d.]+ s", text)
    assert "7.0 s" not in text  # the wall clock of a simulated run is virtual, too: nothing to show
    assert "Predicted time to target" in text
    assert "Seconds are predicted by simulation, not measured" in text
    assert "predicted seconds" in report.figures([one()])["metric_by_seconds"].axes[0].get_xlabel()
    assert "Training time" not in text


def test_a_measured_run_is_not_said_to_be_predicted() -> None:
    assert "predicted" not in words([Run("a", events())]).lower()
    assert "predicted" not in words([Run("a", events()), Run("b", events("synchronous"))]).lower()


def test_what_the_simulation_took_is_not_shown_as_the_cost_of_the_run() -> None:
    for runs in ([one()], [one(), Run("other", simulated(4, method="synchronous"))]):
        text = words(runs)
        assert "memory" not in text.lower().replace("memory 16 gib", "")  # of the machine, in the environment
        assert "CPU time" not in text


def test_a_summary_leaves_out_what_the_simulation_itself_took() -> None:
    made = simulated()
    end = made[-1]
    assert isinstance(end, RunFinished)
    made[-1] = replace(end, cpu_seconds=60.0, peak_rss_bytes=2**30)
    (repeat,) = report.summarize([Run("mine", made)])[0].repeats
    assert math.isnan(repeat.cpu_seconds)
    assert math.isnan(repeat.peak_bytes)


def test_a_comparison_of_simulated_and_measured_runs_says_which_is_which() -> None:
    real = Run("real", events("synchronous", 1))
    text = words([real, one()])
    assert text.count("Seconds of mine are predicted by simulation; the others were measured.") == 2
    table = tables.every_run([real, one()])
    assert table.head[-2:] == ["CPU time", "Peak memory"]
    assert [row[-2:] for row in table.rows][1] == ["n/a", "n/a"]
    assert "n/a" not in table.rows[0][-2:]
    assert "times the CPU-seconds" not in text


def test_a_simulation_of_no_time_or_nobody_gives_a_page() -> None:
    start = started(engine="simulated")
    nothing = traffic(0, 0)
    for event, end in ((traffic(), finished(seconds=0.0, samples=0)), (nothing, finished())):
        run = Run("mine", [start, event, end])
        assert "Simulated run" in report.render([run])
        assert figures([run]).keys() <= {"traffic"}

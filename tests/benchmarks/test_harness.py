from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.harness import Contestant, Store, child_environment, measure, shuffled
from benchmarks.reporting import Check, Report, Table

from benchmarks import reporting, stats


def test_spread_of_a_single_value_is_that_value() -> None:
    assert stats.spread([2.0]) == (1, 2.0, 2.0, 2.0, 2.0, 2.0)


def test_no_values_are_refused_everywhere() -> None:
    for function in (stats.spread, stats.median_interval, stats.median_lower_bound):
        with pytest.raises(ValueError, match="no values"):
            function([])


def test_pairs_must_have_equal_length() -> None:
    with pytest.raises(ValueError, match="shorter"):
        stats.paired_ratios([1.0, 2.0], [1.0])


# Ranks of the sign test's confidence limits, as tables have them (n, rank from each end, exact confidence).
@pytest.mark.parametrize(
    ("n", "rank", "confidence"), [(6, 1, 0.96875), (10, 2, 0.978516), (30, 10, 0.957226)]
)
def test_median_interval_has_the_tabulated_ranks(n: int, rank: int, confidence: float) -> None:
    values = [float(i) for i in range(1, n + 1)]
    random.Random(0).shuffle(values)
    low, high, reached = stats.median_interval(values)
    assert (low, high) == (rank, n + 1 - rank)
    assert reached == pytest.approx(confidence, abs=1e-6)


def test_median_interval_of_few_values_admits_that_it_falls_short() -> None:
    assert stats.median_interval([1.0, 2.0, 3.0]) == (1.0, 3.0, 0.75)


@pytest.mark.parametrize(("n", "rank"), [(5, 1), (8, 2), (30, 11)])
def test_lower_bound_of_the_median_has_the_tabulated_rank(n: int, rank: int) -> None:
    low, high, confidence = stats.median_lower_bound([float(i) for i in range(1, n + 1)])
    assert low == rank
    assert math.isinf(high)
    assert confidence >= 0.95


def test_lower_bound_covers_the_median_as_often_as_it_says() -> None:
    draw = random.Random(1)
    trials = 2000
    covered = sum(
        stats.median_lower_bound([draw.gauss(0.0, 1.0) for _ in range(12)]).low <= 0.0 for _ in range(trials)
    )
    exact = stats.median_lower_bound([0.0] * 12).confidence
    assert covered / trials == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / trials))


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [
        (0.975, 1, 12.7062),
        (0.975, 4, 2.77645),
        (0.95, 9, 1.83311),
        (0.975, 29, 2.04523),
        (0.975, 1000, 1.96234),
    ],
)
def test_student_quantiles_are_those_of_the_tables(probability: float, freedom: int, quantile: float) -> None:
    assert stats.student_quantile(probability, freedom) == pytest.approx(quantile, rel=1e-5)


def test_mean_interval_by_hand() -> None:
    # mean 3, standard deviation sqrt(2.5), standard error sqrt(0.5), t = 2.77645
    low, high, _ = stats.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert low == pytest.approx(3 - 2.77645 * math.sqrt(0.5), abs=1e-4)
    assert high == pytest.approx(3 + 2.77645 * math.sqrt(0.5), abs=1e-4)
    with pytest.raises(ValueError, match="two values"):
        stats.mean_interval([1.0])


def test_ratio_of_medians_interval_holds_the_ratio_and_is_reproducible() -> None:
    ours, theirs = [2.0, 2.1, 1.9, 2.2, 1.8], [1.0, 1.1, 0.9, 1.05, 0.95]
    interval = stats.ratio_of_medians_interval(ours, theirs, draws=500)
    assert interval.low < 2.0 < interval.high
    assert interval == stats.ratio_of_medians_interval(ours, theirs, draws=500)
    assert stats.ratio_of_medians_interval([3.0] * 5, [1.5] * 5, draws=50) == (2.0, 2.0, 0.95)


def test_a_round_runs_everybody_once_and_rounds_differ_in_order() -> None:
    orders = [shuffled("abcd", number) for number in range(20)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len({tuple(order) for order in orders}) > 5
    assert {order[0] for order in orders} == set("abcd")


def test_children_inherit_no_thread_setting() -> None:
    before = {"PATH": "/bin", "OMP_NUM_THREADS": "8", "MKL_NUM_THREADS": "4", "KMP_AFFINITY": "compact"}
    assert child_environment(before, 2) == {"PATH": "/bin", "OMP_NUM_THREADS": "2"}


def contestants() -> list[Contestant]:
    return [Contestant("a", "bare", 1, {"lr": 1}), Contestant("b", "bare", 1, {"lr": 2})]


def test_results_are_in_the_order_of_the_rounds() -> None:
    results = measure(contestants(), 3, run=lambda c, repeat: {"who": c.label, "round": repeat})
    assert results == {label: [{"who": label, "round": r} for r in range(3)] for label in "ab"}


def test_two_contestants_of_one_label_are_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        measure([contestants()[0]] * 2, 1, run=lambda c, repeat: {})


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path: Path) -> None:
    path, ran = tmp_path / "runs.jsonl", list[tuple[str, int]]()

    def run(contestant: Contestant, repeat: int) -> dict[str, Any]:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append((contestant.label, repeat))
        return {"value": len(ran)}

    with pytest.raises(KeyboardInterrupt):
        measure(contestants(), 2, Store(path), run)
    with path.open("a") as file:
        file.write('{"key": "to')  # as a crash in the middle of a line leaves it
    done = list(ran)
    ran.clear()
    results = measure(contestants(), 2, Store(path), run)
    assert sorted(done + ran) == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert len(results["a"]) == len(results["b"]) == 2


def test_other_settings_are_another_run(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.jsonl")
    first, second = contestants()
    store.put(first, 0, {"value": 1})
    assert Store(tmp_path / "runs.jsonl").get(first, 0) == {"value": 1}
    assert store.get(second, 0) is None
    assert store.get(first, 1) is None
    store.clear()
    assert Store(tmp_path / "runs.jsonl").get(first, 0) is None


def report(met: bool | None) -> Report:
    environment = {
        **dict.fromkeys(("cpu", "system", "python", "commit"), "x"),
        **{
            "cores": 2,
            "memory_gib": 1.0,
            "versions": {"torch": "0"},
            "date": "2000-01-01",
            "busy_before_percent": 0.0,
        },
    }
    table = Table("Rates", ("who", "rate"), [("us", "1")])
    checks = [Check("us / them", ">= 2", "1.5", met)]
    return Report("speed", "Speed", "How.", environment, {"repeats": 1}, [table], checks, {"us": [math.nan]})


def test_a_report_survives_its_file_and_says_what_was_missed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reporting.publish(report(False), tmp_path)
    read = reporting.read(tmp_path / "speed.json")
    assert read.checks == report(False).checks
    assert read.raw == {"us": [None]}
    assert reporting.markdown(read) == (tmp_path / "speed.md").read_text()
    assert "| us / them | >= 2 | 1.5 | **no** |" in capsys.readouterr().out


def test_the_summary_counts_only_what_was_judged() -> None:
    page = reporting.summary([report(True), report(False), report(None)])
    assert "1 of 2 targets met" in page


def test_a_target_is_judged_by_the_median_of_the_paired_ratios() -> None:
    check = reporting.at_least("x", 1.5, [2.0, 4.0, 2.0], [1.0, 2.0, 2.0])
    assert check.met
    assert check.measured == "2.000 (75 % interval 1.000 to 2.000)"
    assert not reporting.at_least("x", 2.1, [2.0, 4.0, 2.0], [1.0, 2.0, 2.0]).met


def test_a_trial_of_the_path_judges_nothing(tmp_path: Path) -> None:
    trial = reporting.publish(replace(report(True), quick=True), tmp_path)
    assert [check.met for check in trial.checks] == [None]
    assert "mean nothing" in reporting.markdown(trial)


def test_one_run_has_no_interval() -> None:
    assert reporting.at_least("x", 1.0, [2.0], [1.0]).measured == "2.000 (one run)"

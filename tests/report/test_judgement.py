from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest

from freewheel.report import Repeat, Summary, verdict


def summary(
    label: str,
    speeds: list[float],
    accuracies: list[float] | None = None,
    *,
    method: str | None = None,
    metric: str = "accuracy",
    seeds: list[int] | None = None,
    targets: list[float | None] | None = None,
    complete: bool = True,
) -> Summary:
    number = len(speeds)
    repeats = tuple(
        Repeat(seed, 1000 / speed, speed, value, target, 100.0, 1e6, complete)
        for seed, speed, value, target in zip(
            seeds or range(number),
            speeds,
            accuracies or [0.9] * number,
            targets or [None] * number,
            strict=True,
        )
    )
    goal = ("accuracy", 0.88) if targets else None
    return Summary(label, method or label, metric, repeats, goal)


def base(speeds: list[float], accuracies: list[float] | None = None, **more: object) -> Summary:
    return summary("sync", speeds, accuracies, method="synchronous", **more)  # type: ignore[arg-type]


def test_clear_win_names_ratio_of_medians_and_range_of_pairs() -> None:
    lines = verdict([base([100.0, 102.0, 98.0]), summary("hogwild", [150.0, 143.0, 147.0])])
    assert lines[0] == (
        "hogwild won: 1.47 times as fast as sync in samples per second (1.40 to 1.50 over 3 pairs of runs), "
        "accuracy +0.0 points (+0.0 to +0.0)."
    )
    assert not any("did not pay" in line or "indication" in line for line in lines)


def test_slower_did_not_pay() -> None:
    head = verdict([base([100.0, 101.0, 102.0]), summary("hogwild", [80.0, 81.0, 82.0])])[0]
    assert head.startswith(
        "Asynchrony did not pay here: hogwild was slower; it was 0.80 times as fast as sync"
    )


def test_slower_within_the_spread_says_both() -> None:
    head = verdict([base([100.0, 90.0, 104.0]), summary("hogwild", [95.0, 103.0, 98.0])])[0]
    assert head.startswith(
        "Asynchrony did not pay here: hogwild was slower, though within the spread of the runs"
    )


def test_faster_within_the_spread_is_no_win() -> None:
    lines = verdict([base([100.0, 120.0, 90.0]), summary("hogwild", [118.0, 99.0, 119.0])])
    assert lines[0].startswith(
        "No clear winner: the difference between hogwild and sync is within the spread"
    )
    assert not any("won" in line for line in lines)


@pytest.mark.parametrize(
    ("accuracy", "pays"), [(0.8951, True), (0.895, True), (0.8949, False), (0.70, False)]
)
def test_an_accuracy_more_than_half_a_point_lower_did_not_pay(accuracy: float, pays: bool) -> None:
    lines = verdict([base([100.0] * 3), summary("hogwild", [200.0, 201.0, 202.0], [accuracy] * 3)])
    assert ("did not pay" not in lines[0]) == pays
    if not pays:
        assert "lost" in lines[0]
        assert "points of accuracy" in lines[0]


def test_no_finite_accuracy_did_not_pay() -> None:
    head = verdict([base([100.0] * 3), summary("hogwild", [200.0] * 3, [math.nan] * 3)])[0]
    assert "did not pay here: hogwild lost its accuracy" in head


def test_for_a_loss_lower_is_better() -> None:
    def judged(loss: float) -> str:
        slow = base([100.0] * 3, [2.0] * 3, metric="loss")
        return verdict([slow, summary("hogwild", [200.0] * 3, [loss] * 3, metric="loss")])[0]

    assert "loss 10.0 % better" in judged(1.8)
    assert "did not pay" not in judged(2.01)
    assert "did not pay here: hogwild lost 5.0 % of loss" in judged(2.1)


def test_few_pairs_are_not_called_a_measurement() -> None:
    one = verdict([base([100.0]), summary("hogwild", [150.0])])
    assert one[0].startswith("hogwild looks faster: 1.50 times")
    assert "an observation, not a measurement" in one[-1]
    two = verdict([base([100.0, 100.0]), summary("hogwild", [150.0, 151.0])])
    assert two[0].startswith("hogwild looks faster: 1.50 times")
    assert two[-1] == "There are only 2 pairs of runs: an indication, not a measurement."


@pytest.mark.parametrize(
    ("speed", "accuracy", "why"),
    [(80.0, 0.9, "was slower"), (150.0, 0.89, "lost 1.0 points of accuracy")],
)
def test_few_pairs_do_not_condemn(speed: float, accuracy: float, why: str) -> None:
    def head(pairs: int) -> str:
        return verdict([base([100.0] * pairs), summary("hogwild", [speed] * pairs, [accuracy] * pairs)])[0]

    assert head(2).startswith(f"Asynchrony does not seem to pay here: hogwild {why}; it was")
    assert head(3).startswith(f"Asynchrony did not pay here: hogwild {why}; it was")


def test_pairs_are_made_by_seed_not_by_order() -> None:
    slow = base([100.0, 200.0, 400.0], seeds=[1, 2, 3])
    fast = summary("hogwild", [800.0, 200.0, 400.0], seeds=[3, 1, 2])
    assert (
        "2.00 times as fast as sync in samples per second (2.00 to 2.00 over 3 pairs"
        in verdict([slow, fast])[0]
    )


def test_different_seeds_are_said() -> None:
    head = verdict([base([100.0], seeds=[1]), summary("hogwild", [150.0], seeds=[2])])[0]
    assert "(1 pair of runs with different seeds)" in head


def test_time_to_target_is_the_measure_where_all_reached_it() -> None:
    slow = base([100.0] * 3, targets=[10.0, 10.0, 10.0])
    fast = summary("hogwild", [100.0] * 3, targets=[5.0, 4.0, 5.0])
    assert "2.00 times as fast as sync in time to the target (2.00 to 2.50" in verdict([slow, fast])[0]


def test_missing_the_target_did_not_pay() -> None:
    slow = base([100.0] * 3, targets=[10.0, 10.0, 10.0])
    lines = verdict([slow, summary("hogwild", [200.0] * 3, targets=[5.0, None, None])])
    assert "did not pay here: hogwild reached the target less often" in lines[0]
    assert "1 of 3 runs of hogwild reached the target of accuracy 0.88, and 3 of 3 of sync." in lines


def test_the_fastest_synchronous_method_is_the_baseline() -> None:
    other = summary("sync-4", [180.0] * 3, method="synchronous")
    lines = verdict([base([100.0] * 3), other, summary("hogwild", [150.0] * 3)])
    assert "did not pay" in lines[0]
    assert "The baseline is sync-4, the fastest of 2 synchronous methods." in lines


def test_the_baseline_is_the_fastest_to_the_target_when_the_verdict_is_about_it() -> None:
    large = summary("large", [900.0] * 3, method="synchronous", targets=[20.0, 21.0, 22.0])
    small = base([100.0] * 3, targets=[9.0, 10.0, 11.0])
    fast = summary("hogwild", [300.0] * 3, targets=[12.0] * 3)
    lines = verdict([large, small, fast])
    assert "did not pay" in lines[0]
    assert "0.83 times as fast as sync in time to the target" in lines[0]
    assert "The baseline is sync, the fastest to the target of 2 synchronous methods." in lines


def test_a_baseline_that_missed_the_target_is_not_preferred() -> None:
    large = summary("large", [900.0] * 3, method="synchronous", targets=[5.0, None, 5.0])
    small = base([100.0] * 3, targets=[9.0, 10.0, 11.0])
    lines = verdict([large, small, summary("hogwild", [950.0] * 3, targets=[12.0, None, 12.0])])
    assert "did not pay here: hogwild reached the target less often" in lines[0]
    assert any(line.startswith("The baseline is sync,") for line in lines)


def test_the_baseline_may_be_named() -> None:
    given = [
        base([100.0] * 3),
        summary("other", [180.0] * 3, method="synchronous"),
        summary("a", [150.0] * 3),
    ]
    assert verdict(given, "sync")[0].startswith("a won: 1.50 times as fast as sync")
    assert not any("The baseline is" in line for line in verdict(given, "sync"))
    gone = [summary("other", [180.0], method="synchronous", complete=False), *given[:1], *given[2:]]
    assert verdict(gone, "other") == [
        "There is no finished run of the baseline other to compare with, so this says nothing about"
        " asynchrony.",
        "1 run of other did not come to an end and is left out.",
    ]


@pytest.mark.parametrize(
    ("metric", "target", "better"),
    [
        ("MSE", None, False),
        ("bits_per_character", None, False),
        ("latency", ("latency", 1.0, "min"), False),
        ("latency", None, True),
        ("error_margin", ("error_margin", 1.0, "max"), True),
    ],
)
def test_what_is_better_is_told_by_the_name_or_the_target(
    metric: str, target: tuple[str, float, Literal["min", "max"]] | None, better: bool
) -> None:
    given = [base([100.0], [2.0], metric=metric), summary("hogwild", [200.0], [4.0], metric=metric)]
    head = verdict([replace(one, target=target) for one in given])[0]
    assert (f"{metric} 100.0 % better" in head) is better
    assert (f"lost 100.0 % of {metric}" in head) is not better


def test_the_best_method_comes_first() -> None:
    lines = verdict([base([100.0] * 3), summary("a", [90.0] * 3), summary("b", [150.0] * 3)])
    assert lines[0].startswith("b won")
    assert any(line.startswith("Asynchrony did not pay here: a") for line in lines)


def test_broken_runs_are_left_out_and_said() -> None:
    lines = verdict([base([100.0]), summary("a", [150.0]), summary("b", [999.0], complete=False)])
    assert "1 run of b did not come to an end and is left out." in lines
    assert not any("999" in line or "9.99" in line for line in lines)


@pytest.mark.parametrize(
    ("summaries", "words"),
    [
        ([], "nothing to compare"),
        ([base([100.0])], "no asynchronous run"),
        ([summary("a", [1.0]), summary("b", [2.0])], "no synchronous run"),
        ([base([100.0], complete=False)], "No run came to its end"),
        ([base([100.0]), summary("a", [math.nan])], "nothing that can be timed"),
        ([base([0.0001]), summary("a", [0.0001])], "No clear winner"),
    ],
)
def test_nothing_is_claimed_without_data(summaries: list[Summary], words: str) -> None:
    assert words in verdict(summaries)[0]

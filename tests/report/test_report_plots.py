from __future__ import annotations

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from synthetic_runs import events, finished, started

from freewheel.events import Event, Tick
from freewheel.report import Run, figures
from freewheel.report.plots import SERIES, rates, shares, short, tick_label, total_rate, worker_rates


def test_rates_integrate_to_the_samples() -> None:
    run = Run("x", events())
    ticks = run.ticks
    for worker, points in enumerate(worker_rates(run)):
        mean = sum(rate for _, rate in points) / len(points)
        assert mean == pytest.approx(ticks[-1].samples[worker] / ticks[-1].seconds, rel=0.02)
    assert max(rate for _, rate in total_rate(run)) > 900


def test_rates_of_a_steady_run_are_constant() -> None:
    seconds = [0.1 * index for index in range(100)]
    points = rates(seconds, [50 * second for second in seconds])
    assert [rate for _, rate in points] == pytest.approx([50] * len(points))
    assert len(points) in (18, 19)  # of half a second each, side by side


@pytest.mark.parametrize("seconds", [[], [0.0], [0.0, 0.0]])
def test_rates_of_nothing_are_nothing(seconds: list[float]) -> None:
    assert rates(seconds, [0.0] * len(seconds)) == []


def test_shares_are_over_all_repeats() -> None:
    runs = [
        Run("x", [started(), finished(staleness={0: 1, 2: 1})]),
        Run("x", [started(), finished(staleness={2: 2})]),
    ]
    assert shares(runs) == {0: 0.25, 2: 0.75}


def test_one_line_for_each_worker_and_a_band_for_many() -> None:
    few = figures([Run("x", events(workers=3))])["throughput"]
    many = figures([Run("x", events(workers=20))])["throughput"]
    assert len(few.axes[0].lines) == 3
    assert (len(many.axes[0].lines), len(many.axes[0].collections)) == (1, 1)


def test_every_repeat_is_drawn_and_each_label_named_once() -> None:
    runs = [Run(label, events(label, seed=seed)) for seed in range(3) for label in ("a", "b")]
    figure = figures(runs)["throughput"]
    assert len(figure.axes[0].lines) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_a_label_keeps_its_colour_in_every_plot() -> None:
    quiet: list[Event] = [started("a"), Tick(1.0, [5], 1.0, 0.0, 10, 1.0), Tick(2.0, [9], 1.0, 0.0, 10, 1.0)]
    made = figures(
        [Run("a", quiet), Run("b", events("b"))]
    )  # a has no staleness, and must leave its colour free
    bars = [
        patch
        for patch in made["staleness"].axes[0].patches
        if isinstance(patch, Rectangle) and patch.get_height()
    ]
    assert {to_hex(bar.get_facecolor()) for bar in bars} == {SERIES[1]}
    assert made["memory"].axes[0].lines[1].get_color() == SERIES[1]


@pytest.mark.parametrize(
    ("label", "expected"), [("_x", " _x"), ("", "(no name)"), ("a\nb", "a b"), ("x" * 40, "x" * 27 + "…")]
)
def test_labels_in_legends(label: str, expected: str) -> None:
    assert short(label) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, "0"), (5000, "5k"), (12_500, "12.5k"), (2e7, "20M"), (-3e4, "-30k")]
)
def test_tick_labels(value: float, expected: str) -> None:
    assert tick_label(value) == expected

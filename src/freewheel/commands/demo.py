"""``freewheel demo``: Hogwild! on all cores beside synchronous training, in about two minutes."""

from __future__ import annotations

from typing import Annotated

import typer

from freewheel.commands.compare import conclude
from freewheel.commands.shell import RUNS, err, fresh_folder, reported
from freewheel.compare import compare
from freewheel.machine import cores
from freewheel.recipes.images import images
from freewheel.recipes.settings import Budget, Settings

SAMPLES = 30_000
EVALUATIONS = 6
SEEDS = 2


@reported
def demo(
    samples: Annotated[
        int,
        typer.Option("--max-samples", metavar="N", help="Images for each run; fewer for a quicker look."),
    ] = SAMPLES,
) -> None:
    """Train a CNN on real images by Hogwild! on all cores, beside synchronous training with the same budget.

    It needs no download: 10,000 images of Fashion-MNIST are in the package. Two seeds each, in turn, every
    run in a fresh process; about two minutes on two cores. Then there is a table, a verdict in plain words,
    and a report with plots.
    """
    budget = Budget(max_samples=samples, evaluate_every=max(1, samples // EVALUATIONS))
    recipe = images(Settings(model="cnn", budget=budget))
    number = cores()
    folder = RUNS / "demo"
    err().print(
        f"A convolutional network on {len(recipe.data):,} images of clothing, {samples:,} samples a run:\n"
        f"  hogwild      {number} workers, each changes the shared weights as soon as it is ready\n"
        f"  synchronous  1 worker that uses {number} threads inside every operation",
        markup=False,
    )
    comparison = compare(
        recipe.build,
        recipe.data,
        contestants={name: recipe.method(name) for name in ("hogwild", "synchronous")},
        seeds=range(SEEDS),
        run_dir=fresh_folder("", folder),
        **recipe.arguments,
    )
    report = comparison.report(folder / "report.html", png=True)
    conclude(comparison, report)

"""``freewheel compare``: several methods, equal budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freewheel.commands import method_options as how
from freewheel.commands import options as opt
from freewheel.commands.shell import EXIT_INTERRUPTED, err, fresh_folder, out, reported
from freewheel.compare import compare as run_comparison
from freewheel.comparison import Comparison
from freewheel.errors import ConfigurationError
from freewheel.recipes.settings import Optimization

Methods = Annotated[
    str,
    typer.Option("--methods", metavar="A,B", rich_help_panel="How", help="Which to compare, with commas."),
]
Seeds = Annotated[
    int,
    typer.Option("--seeds", metavar="N", rich_help_panel="How", help="Runs of each method: seeds 0 to N-1."),
]


@reported
def compare(
    what: opt.What,
    data: opt.Data = None,
    model: opt.Model = None,
    methods: Methods = "hogwild,synchronous",
    seeds: Seeds = 3,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    momentum: opt.Momentum = None,
    schedule: opt.ScheduleName = "annealed",
    granularity: opt.GranularityName = "model",
    settings: how.Set = None,
    compression: how.Compression = None,
    epochs: opt.Epochs = None,
    max_samples: opt.MaxSamples = None,
    max_seconds: opt.MaxSeconds = None,
    target: opt.Target = None,
    evaluate_every: opt.EvaluateEvery = None,
    engine: opt.EngineName = "threads",
    workers: opt.Workers = "auto",
    intra_op_threads: opt.IntraOpThreads = None,
    precision: opt.Precision = "float32",
    run_dir: opt.RunDir = None,
) -> None:
    """Train the same network by several methods with the same budget, and say which won.

    Every run has a fresh process to itself; runs of the methods are interleaved. Use an idle machine: the
    numbers are times.

    [bold]Examples[/bold]

      freewheel compare images

      freewheel compare images --data fashion-mnist --target accuracy=0.88 --epochs 10 --evaluate-every 10000

      freewheel compare images --model mlp --batch-size 16 --workers 2 --seeds 5

      freewheel compare images --methods synchronous,downpour,stale_synchronous --set bound=5
    """
    if seeds < 1:
        raise ConfigurationError(f"`seeds` must be >= 1, got {seeds}")
    names = [name.strip() for name in methods.split(",") if name.strip()]
    recipe = opt.recipe(
        what,
        data=data,
        model=model,
        optimization=Optimization(
            lr,
            momentum,
            schedule,
            granularity,
            batch_size,
            how.settings_of(settings, compression, tuple(names)),
        ),
        budget=opt.budget_of(epochs, max_samples, max_seconds, target, evaluate_every),
        hardware=opt.hardware_of(engine, workers, intra_op_threads, precision),
    )
    contestants = {name: recipe.method(name) for name in names}
    if len(contestants) < len(names):
        raise ConfigurationError(f"`contestants` names a method twice: {methods}")
    folder = run_dir or fresh_folder(f"compare-{what}")
    err().print(
        f"Comparing {', '.join(contestants)}: {recipe.title}; everything is written to {folder}",
        markup=False,
        soft_wrap=True,
    )
    if recipe.note:
        err().print(f"Note: {recipe.note}", markup=False, soft_wrap=True)
    comparison = run_comparison(
        recipe.build,
        recipe.data,
        contestants=contestants,
        seeds=range(seeds),
        run_dir=folder,
        **recipe.arguments,
    )
    conclude(comparison, folder / "report.html")


def conclude(comparison: Comparison, report: Path) -> None:
    """Prints table and verdict.

    Raises:
        typer.Exit: it was interrupted.
    """
    console = out()
    console.print(comparison.table())
    console.print()
    headline, *further = comparison.verdict
    console.print(headline, style="bold", markup=False)
    for line in further:
        console.print(line, markup=False)
    console.print()
    console.print(f"Report: {report}", markup=False, soft_wrap=True)
    if comparison.interrupted:
        err().print("Interrupted: this is what the finished runs show.", style="yellow")
        raise typer.Exit(EXIT_INTERRUPTED)

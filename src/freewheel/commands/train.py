"""``freewheel train``: one run."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from rich.table import Table

from freewheel import Result, fit
from freewheel.checkpoints.folder import CHECKPOINTS
from freewheel.commands import method_options as how
from freewheel.commands import options as opt
from freewheel.commands.recipe_file import Choice, keeper
from freewheel.commands.resuming import choice_to_resume, given_options, run_of
from freewheel.commands.shell import EXIT_INTERRUPTED, err, fresh_folder, out, parse_workers, reported
from freewheel.errors import ConfigurationError
from freewheel.events import Resumed
from freewheel.monitors import progress
from freewheel.recipes.settings import Optimization, Recipe, Settings
from freewheel.recording.log import HEADER
from freewheel.report import wording
from freewheel.rundir import REPORT, WEIGHTS


@reported
def train(
    context: typer.Context,
    what: opt.WhatOrRun = None,
    data: opt.Data = None,
    model: opt.Model = None,
    method: how.MethodName = "hogwild",
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    momentum: opt.Momentum = None,
    schedule: opt.ScheduleName = "annealed",
    granularity: opt.GranularityName = "model",
    settings: how.Set = None,
    compression: how.Compression = None,
    seed: how.Seed = 0,
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
    record: opt.Record = False,
    checkpoint_every: opt.CheckpointEvery = "auto",
    keep_checkpoints: opt.KeepCheckpoints = 3,
    resume: opt.Resume = None,
    on_error: opt.OnError = None,
    max_restarts: opt.MaxRestarts = 10,
    step_timeout: opt.StepTimeout = None,
) -> None:
    """Train a network on all cores, and write weights, events and a report.

    Ctrl-C or SIGTERM ends the training cleanly: what was trained until then is measured and written. A second
    one does without the measuring. A run goes on from its newest checkpoint with --resume, whatever ended it.

    [bold]Examples[/bold]

      freewheel train images

      freewheel train images --data fashion-mnist --epochs 5 --target accuracy=0.9

      freewheel train images --model mlp --method synchronous --workers 4

      freewheel train images --method downpour --set push_every=10 --compression top_k:0.01

      freewheel train text --max-seconds 60

      freewheel train images --model mlp --method downpour --record

      freewheel train --resume runs/20250101-120000-images-hogwild --epochs 10
    """
    budget = opt.budget_of(epochs, max_samples, max_seconds, target, evaluate_every)
    if resume is not None:
        choice = choice_to_resume(resume, budget, parse_workers(workers), given_options(context))
    else:
        given = how.settings_of(settings, compression, (method,))
        optimization = Optimization(lr, momentum, schedule, granularity, batch_size, given)
        hardware = opt.hardware_of(engine, workers, intra_op_threads, precision)
        chosen = Settings(data, model, optimization, budget, hardware)
        choice = Choice(_named(what), method, chosen, tuple(settings or ()), compression, seed)
    recipe = _recipe(choice)
    folder = run_dir or (fresh_folder(f"{what}-{method}") if resume is None else run_of(resume))
    _announce(recipe, folder)
    torch.manual_seed(min(max(choice.seed, 0), 2**32 - 1))  # a bad seed is refused by fit, with the remedy
    result = fit(
        recipe.build(),
        recipe.data,
        method=recipe.method(choice.method),
        seed=choice.seed,
        monitors=[progress(err()), keeper(folder, choice)],
        run_dir=folder,
        record=record,
        checkpoint_every=opt.parse_checkpoint_every(checkpoint_every),
        keep_checkpoints=keep_checkpoints,
        resume=resume,
        on_error=on_error,  # type: ignore[arg-type]  # fit refuses other words
        max_restarts=max_restarts,
        step_timeout=opt.parse_step_timeout(step_timeout),
        **recipe.arguments,
    )
    _conclude(result, recipe, folder)
    if result.reason == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def _named(what: str | None) -> str:
    if what is None:
        raise ConfigurationError("name what to train, images or text, or a run to go on with: --resume RUN")
    return what


def _recipe(choice: Choice) -> Recipe:
    settings = choice.settings
    return opt.recipe(
        choice.what,
        data=settings.data,
        model=settings.model,
        optimization=settings.optimization,
        budget=settings.budget,
        hardware=settings.hardware,
    )


def _announce(recipe: Recipe, folder: Path) -> None:
    err().print(f"Training {recipe.title}; everything is written to {folder}", markup=False, soft_wrap=True)
    if recipe.note:
        err().print(f"Note: {recipe.note}", markup=False, soft_wrap=True)


def _conclude(result: Result, recipe: Recipe, folder: Path) -> None:
    console = out()
    console.print(_table(result, recipe))
    resumed = next((event for event in result.events if isinstance(event, Resumed)), None)
    if resumed is not None and resumed.steps == result.steps:
        console.print("Nothing was left to train: give it more, by --epochs, say.")
    if recipe.show is not None:
        console.print("\nA text by this model:\n", style="bold")
        console.print(recipe.show(result.module), markup=False)
    console.print()
    console.print(f"Report:  {folder / REPORT}", markup=False, soft_wrap=True)
    console.print(f"Weights: {folder / WEIGHTS}", markup=False, soft_wrap=True)
    if result.reason in ("interrupted", "max_seconds") and (folder / CHECKPOINTS).is_dir():
        console.print(f"Go on:   freewheel train --resume {folder}", markup=False, soft_wrap=True)
    if (folder / HEADER).is_file():
        console.print(f"Replay:  freewheel replay {folder}", markup=False, soft_wrap=True)


def _table(result: Result, recipe: Recipe) -> Table:
    table = Table(title=recipe.title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    config = result.config
    workers = wording.plural(config["workers"], "worker")
    threads = config["intra_op_threads"]
    table.add_row(
        "Method", f"{config['method']}, {workers}" + (f" with {threads} threads" if threads > 1 else "")
    )
    for name, value in result.metrics.items():
        table.add_row(name.replace("_", " ").capitalize(), wording.metric(value))
    table.add_row("Training time", wording.duration(result.seconds))
    if result.wall_seconds > result.seconds:  # equal where time is simulated
        table.add_row("With evaluation", wording.duration(result.wall_seconds))
    if "target" in recipe.arguments and recipe.arguments["target"] is not None:
        reached = result.target_seconds
        table.add_row("Time to target", "not reached" if reached is None else wording.duration(reached))
    table.add_row("Samples", wording.count(result.samples))
    table.add_row("Samples per second", wording.rate(result.samples_per_second))
    table.add_row("Mean staleness", wording.rate(result.mean_staleness))
    table.add_row("Peak memory", wording.size(result.peak_rss_bytes))
    dropped = sum(result.ledger.get("dropped", {}).values())
    if dropped:
        table.add_row("Updates dropped", wording.count(dropped))
    table.add_row("Ended by", result.reason)
    return table

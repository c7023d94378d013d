"""``freewheel simulate``: what a run would take on other machines."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from freewheel import Result, fit
from freewheel.calibrate import calibrate
from freewheel.calibration import Calibration
from freewheel.commands import method_options as how
from freewheel.commands import options as opt
from freewheel.commands import prediction
from freewheel.commands import simulation_options as sim
from freewheel.commands.shell import EXIT_INTERRUPTED, err, fresh_folder, out, parse_workers, reported
from freewheel.errors import ConfigurationError
from freewheel.machine import cores
from freewheel.monitors import progress
from freewheel.recipes.settings import Optimization, Recipe
from freewheel.report import wording
from freewheel.rundir import REPORT, WEIGHTS

SECONDS = 1.0  # of measuring, where no step time is given

Workers = Annotated[
    str,
    typer.Option("--workers", metavar="N", rich_help_panel="Where", help="Machines, up to some thousands."),
]


@reported
def simulate(
    what: opt.What,
    data: opt.Data = None,
    model: opt.Model = None,
    method: how.MethodName = "stale_synchronous",
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    momentum: opt.Momentum = None,
    schedule: opt.ScheduleName = "annealed",
    settings: how.Set = None,
    compression: how.Compression = None,
    seed: how.Seed = 0,
    epochs: opt.Epochs = None,
    max_samples: opt.MaxSamples = None,
    max_seconds: opt.MaxSeconds = None,
    target: opt.Target = None,
    evaluate_every: opt.EvaluateEvery = None,
    workers: Workers = "8",
    step_time: sim.StepTime = None,
    spread: sim.Spread = None,
    times_from: sim.TimesFrom = None,
    slow: sim.Slow = None,
    stragglers: sim.Stragglers = 0,
    slowdown: sim.Slowdown = 4.0,
    latency: sim.Latency = None,
    bandwidth: sim.Bandwidth = None,
    shared_bandwidth: sim.SharedBandwidth = None,
    server_time: sim.ServerTime = None,
    shards: sim.Shards = 1,
    in_flight: sim.InFlight = None,
    die: sim.Deaths = None,
    lose: sim.Lose = 0.0,
    corrupt: sim.Corruption = None,
    precision: opt.Precision = "float32",
    run_dir: opt.RunDir = None,
) -> None:
    """Train as if on many machines: true gradients of the true model, only time is simulated.

    It takes as long as computing all gradients one after the other, and says what the machines would have
    taken. It writes the same folder and report as a real run. --max-seconds is of simulated time.

    [bold]Examples[/bold]

      freewheel simulate images --workers 8 --stragglers 1 --slowdown 4 --target accuracy=0.85

      freewheel simulate images --model mlp --workers 1000 --epochs 10 --lr 0.0003 --step-time 10ms
      --spread 0.3 --latency 5ms --bandwidth 1Gbit/s --shared-bandwidth 10Gbit/s --shards 8

      freewheel simulate images --method synchronous --set backup_workers=1 --slow 4x:7 --die 3:250:5s
    """
    number = _number(workers)
    given = [*(settings or ()), *([f"in_flight={in_flight}"] if in_flight is not None else ())]
    recipe = opt.recipe(
        what,
        data=data,
        model=model,
        optimization=Optimization(
            lr, momentum, schedule, "model", batch_size, how.settings_of(given, compression, (method,))
        ),
        budget=opt.budget_of(epochs, max_samples, max_seconds, target, evaluate_every),
        hardware=opt.hardware_of("simulated", str(number), 1, precision),
    )
    chosen = recipe.method(method)
    engine = sim.engine_of(
        sim.Times(step_time, spread, times_from, slow or [], stragglers, slowdown),
        sim.Wires(latency, bandwidth, shared_bandwidth, server_time),
        sim.faults_of(die, lose, corrupt),
        number,
        partial(measured, recipe),
    )
    folder = run_dir or fresh_folder(f"simulate-{what}-{method}")
    err().print(
        f"Simulating {wording.plural(number, 'worker')}, {recipe.title}; everything is written to {folder}",
        markup=False,
        soft_wrap=True,
    )
    torch.manual_seed(min(max(seed, 0), 2**32 - 1))  # a bad seed is refused by fit, with the remedy
    began = time.perf_counter()
    arguments = {**recipe.arguments, "engine": engine}
    result = fit(
        recipe.build(),
        recipe.data,
        method=chosen,
        seed=seed,
        shards=shards,
        monitors=[progress(err())],
        run_dir=folder,
        **arguments,
    )
    conclude(result, recipe, folder, time.perf_counter() - began)


def measured(recipe: Recipe) -> Calibration:
    """What a second of the recipe's steps on this machine says, by one worker."""
    err().print(f"Measuring steps on this machine for {SECONDS:g} s; --step-time does without", markup=False)
    names = ("loss", "batch_size", "bptt", "precision")
    arguments = {name: recipe.arguments[name] for name in names if name in recipe.arguments}
    found = calibrate(recipe.build(), recipe.data, workers=(1,), seconds=SECONDS, **arguments)
    err().print(found.describe, markup=False)
    return found


def conclude(result: Result, recipe: Recipe, folder: Path, took_s: float) -> None:
    """Prints what came of it.

    Raises:
        typer.Exit: it was interrupted.
    """
    console = out()
    console.print(prediction.table(result, recipe.title, took_s))
    for doubt in prediction.doubts(result):
        console.print(f"Note: {doubt}", markup=False, soft_wrap=True)
    console.print()
    console.print(f"Report:  {folder / REPORT}", markup=False, soft_wrap=True)
    console.print(f"Weights: {folder / WEIGHTS}", markup=False, soft_wrap=True)
    if result.reason == "interrupted":
        raise typer.Exit(EXIT_INTERRUPTED)


def _number(workers: str) -> int:
    number = parse_workers(workers)
    if number == "auto":
        return cores()
    if number < 1:
        raise ConfigurationError(f"`workers` must be a whole number >= 1, got {number}")
    return int(number)

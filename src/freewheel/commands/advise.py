"""``freewheel advise``: which method to use, from a minute of measuring and simulating."""

from __future__ import annotations

from typing import Annotated

import typer

from freewheel.advise import advise as run_advice
from freewheel.commands import method_options as how
from freewheel.commands import options as opt
from freewheel.commands import simulation_options as sim
from freewheel.commands.shell import err, fresh_folder, out, parse_workers, reported
from freewheel.errors import ConfigurationError
from freewheel.machine import cores
from freewheel.methods import Method, synchronous
from freewheel.park import Park, backup_of, park_of
from freewheel.recipes.settings import Optimization, Recipe
from freewheel.rundir import REPORT

TRIED = ("synchronous", "stale_synchronous", "delay_compensated", "downpour", "local_sgd")
TAKEN = ("loss", "evaluate", "batch_size", "bptt", "precision")  # of a recipe's arguments

Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N|auto",
        rich_help_panel="Where",
        help="auto: one per core. More than cores, or with a network: machines of their own.",
    ),
]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds", metavar="S", rich_help_panel="When it ends", help="About how long it may take."
    ),
]


def tried(recipe: Recipe, park: Park) -> dict[str, Method]:
    """The methods to try, with the recipe's settings."""
    made = {name: recipe.method(name) for name in TRIED}
    if not park.apart:
        made["hogwild"] = recipe.method("hogwild")
    if park.workers >= 4:
        spare = backup_of(park)
        made[f"synchronous, {spare} backup"] = synchronous(
            rule=made["synchronous"].rule_for(1), backup_workers=spare
        )
    return made


@reported
def advise(
    what: opt.What,
    data: opt.Data = None,
    model: opt.Model = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    seed: how.Seed = 0,
    seconds: Seconds = 60.0,
    max_samples: opt.MaxSamples = None,
    target: opt.Target = None,
    workers: Workers = "auto",
    slow: sim.Slow = None,
    stragglers: sim.Stragglers = 0,
    slowdown: sim.Slowdown = 4.0,
    latency: sim.Latency = None,
    bandwidth: sim.Bandwidth = None,
    shared_bandwidth: sim.SharedBandwidth = None,
    precision: opt.Precision = "float32",
    run_dir: opt.RunDir = None,
) -> None:
    """Measure a model for some seconds, simulate several methods, and say which to use.

    [bold]Examples[/bold]

      freewheel advise images

      freewheel advise images --workers 8 --latency 1ms --bandwidth 1Gbit/s --stragglers 1

      freewheel advise images --model mlp --workers 32 --target accuracy=0.8 --seconds 120
    """
    given = parse_workers(workers)
    number = cores() if given == "auto" else int(given)
    if number < 1:
        raise ConfigurationError(
            f"`workers` must be a whole number >= 1, or 'auto' for one per core, got {number}"
        )
    recipe = opt.recipe(
        what,
        data=data,
        model=model,
        optimization=Optimization(lr, batch_size=batch_size),
        budget=opt.budget_of(None, max_samples, None, target, None),
        hardware=opt.hardware_of("simulated", str(number), 1, precision),
    )
    factors = sim.factors_of(sim.Times(slow=slow or [], stragglers=stragglers, slowdown=slowdown), number)
    network = sim.network_of(sim.Wires(latency, bandwidth, shared_bandwidth))
    arguments = {key: recipe.arguments[key] for key in TAKEN if key in recipe.arguments}
    err().print(f"Measuring and simulating {recipe.title}, about {seconds:g} s", markup=False)
    advice = run_advice(
        recipe.build,
        recipe.data,
        target=recipe.arguments["target"],
        workers=number,
        network=network,
        slow=factors,
        contestants=tried(recipe, park_of(number, network, factors)),
        seconds=seconds,
        max_samples=max_samples,
        seed=seed,
        **arguments,
    )
    folder = run_dir or fresh_folder(f"advise-{what}")
    path = advice.report(folder / REPORT)
    console = out()
    console.print(advice.table())
    console.print()
    headline, *further = advice.words
    console.print(headline, style="bold", markup=False)
    for line in further:
        console.print(line, markup=False)
    console.print()
    console.print(f"Report: {path}", markup=False, soft_wrap=True)

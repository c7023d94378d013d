"""``freewheel replay``: a recorded run once more, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from freewheel.commands import recipe_file
from freewheel.commands.shell import EXIT_TRAINING, err, out, reported
from freewheel.monitors import progress
from freewheel.recording.applied import AppliedUpdate
from freewheel.replay import Replay
from freewheel.replay import replay as run_again
from freewheel.report import wording


@reported
def replay(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", show_default=False, help="Folder of a run of train --record."),
    ],
    until: Annotated[
        int | None,
        typer.Option(
            "--until",
            metavar="N",
            show_default=False,
            help="Stop right after this update, counted from 1, and look at it. Default: go to the end.",
        ),
    ] = None,
) -> None:
    """Run a recorded run again, bit for bit, and look at an update.

    Workers that race each other never take the same course twice. A recording holds the order in which they
    pulled weights and pushed updates; done again in that order, in one thread, the run gives the same
    weights. The exit code is 1 if it does not.

    Record with workers that have a copy of the weights: stale_synchronous, delay_compensated, downpour,
    elastic_averaging, local_sgd, parallel_sgd or diloco.

    [bold]Examples[/bold]

      freewheel train images --model mlp --method downpour --record --run-dir runs/first

      freewheel replay runs/first                 the weights are the same

      freewheel replay runs/first --until 1234    who pushed this update, how stale, how large
    """
    choice = recipe_file.read(folder)
    recipe = choice.recipe()
    found = run_again(
        folder,
        recipe.build(),
        recipe.data,
        loss=recipe.arguments["loss"],
        method=recipe.method(choice.method),
        until=until,
        monitors=[progress(err())],
    )
    if found.current is not None:
        out().print(f"Update {found.current.number} of {recipe.title}", style="bold")
        out().print(_table(found.current))
        return
    _conclude(found)


def _conclude(found: Replay) -> None:
    done = f"{wording.count(found.operations)} operations, {wording.count(found.updates)} updates"
    if found.matches:
        out().print(f"The replay matches: {done}, and the same weights, bit for bit.", style="bold green")
        return
    out().print(
        f"The replay does not match: after {done} the weights differ. Data that is drawn or changed, another"
        " version of PyTorch or another processor can be the reason.",
        style="bold red",
    )
    raise typer.Exit(EXIT_TRAINING)


def _table(update: AppliedUpdate) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "Worker": update.worker,
        "Its push": update.push,
        "After its step": update.step if update.step >= 0 else "before the first",
        "On batch": update.lease if update.lease >= 0 else "none",
        "Loss of that batch": f"{update.loss:.6g}",
        "Samples": update.samples,
        "Staleness": update.staleness,
        "Norm of the update": f"{update.norm:.6g}",
        "Norm of the change": f"{update.change:.6g}",
        "Norm of the weights": f"{update.weights_norm:.6g}",
        "Operation": update.operation,
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table

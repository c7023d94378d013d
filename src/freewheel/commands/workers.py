"""``freewheel workers``: more or fewer workers for a run that is under way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freewheel.commands.shell import out, reported
from freewheel.elastic import set_workers, workers_of
from freewheel.errors import ConfigurationError
from freewheel.report import wording

Run = Annotated[
    Path, typer.Argument(metavar="RUN", show_default=False, help="The directory of the run (its --run-dir).")
]


@reported
def workers(
    run: Run,
    wanted: Annotated[
        int | None,
        typer.Option(
            "--set", metavar="N", show_default=False, help="How many there are to be; told if left out."
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="How long to wait for it.")
    ] = 120.0,
) -> None:
    """Change the number of workers of a run while it trains.

    Workers finish their step, push what they hold back, and as many go on as are wanted: those that stay keep
    their state, new ones begin with the present weights. Training stands still for a fraction of a second,
    nothing is lost and no batch is used twice. A run that has ended goes on with another number by:
    freewheel train --resume RUN --workers N

    [bold]Examples[/bold]

      freewheel train images --engine processes --workers 2 --epochs 50 --run-dir runs/long

      freewheel workers runs/long              how many there are

      freewheel workers runs/long --set 6      from another terminal
    """
    if wanted is not None and wanted < 1:
        raise ConfigurationError(f"`set` must be a whole number >= 1, got {wanted}")
    if wanted is None:
        out().print(wording.plural(workers_of(run), "worker"))
        return
    change = set_workers(run, wanted, wait)
    if change.before == change.after:
        out().print(f"{run} has {wording.plural(wanted, 'worker')} already", markup=False, soft_wrap=True)
        return
    out().print(
        f"{run} goes on with {wording.plural(change.after, 'worker')} in place of {change.before}; training"
        f" stood still for {wording.duration(change.took_s)}",
        markup=False,
        soft_wrap=True,
    )

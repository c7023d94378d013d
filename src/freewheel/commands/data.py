"""``freewheel data``: which data sets there are, and fetching them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Column, Table

from freewheel.commands.shell import err, out, reported
from freewheel.data import catalogue
from freewheel.errors import ConfigurationError
from freewheel.report import wording

app = typer.Typer(no_args_is_help=True, help="Data sets: list them, fetch them.")


@app.command("list")
@reported
def list_sets() -> None:
    """List the data sets, and where they are on this machine.

    FREEWHEEL_DATA names a folder that holds sets already; downloads go to FREEWHEEL_CACHE, which is
    ~/.cache/freewheel by default.
    """
    name = Column("Name", no_wrap=True, min_width=max(len(data.name) for data in catalogue()))
    table = Table(name, "Description", "Size", "Licence", "Where")
    for data in catalogue():
        here = data.present()
        missing = f"not here: freewheel data fetch {data.name}"
        where = "in the package" if data.embedded else str(here or missing)
        table.add_row(data.name, data.description, wording.size(data.size), data.licence, where)
    out().print(table)


@app.command()
@reported
def fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="As in the list.")],
) -> None:
    """Download a data set, unless it is here already, and check it.

    Example: freewheel data fetch fashion-mnist
    """
    sets = {data.name: data for data in catalogue()}
    if name not in sets:
        raise ConfigurationError(f"NAME must be one of {', '.join(sets)}, got {name!r}")
    data = sets[name]
    if data.present() is None:
        err().print(f"Fetching {name}, {wording.size(data.size)}, from {data.source}", markup=False)
    out().print(f"{name} is in {data.fetch()}", markup=False, soft_wrap=True)

"""``freewheel audit``: does the record of a run add up?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from freewheel.audit import Audit
from freewheel.audit import audit as look
from freewheel.commands.shell import EXIT_TRAINING, out, reported
from freewheel.report import wording


@reported
def audit(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN", show_default=False, help="Folder of a run whose steps were recorded."),
    ],
) -> None:
    """Check the book of a run: every batch computed once, every update accounted for.

    An update is applied once, absorbed into an aggregate, dropped for a reason, or pending when the run ends.
    The exit code is 1 if something does not add up; what it is stands below the table.

    [bold]Examples[/bold]

      freewheel train images --model mlp --method downpour --record --run-dir runs/first

      freewheel audit runs/first
    """
    found = look(folder)
    out().print(_table(found, folder))
    if found.ok:
        out().print("Everything adds up.", style="bold green")
        return
    for violation in found.violations:
        out().print(f"- {violation}", style="red", markup=False, soft_wrap=True)
    out().print(f"{wording.plural(len(found.violations), 'violation')}.", style="bold red")
    raise typer.Exit(EXIT_TRAINING)


def _table(found: Audit, folder: Path) -> Table:
    title = f"{folder.name}: {' and '.join(found.checked)}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "Batches computed": found.steps,
        "Examples": found.samples,
        "Steps without a push": found.unpushed,
        "Updates pushed": found.pushed,
        "Applied": found.applied,
        "Absorbed": found.absorbed,
        "Pending": found.pending,
        **{f"Dropped ({reason})": count for reason, count in found.dropped.items()},
        "Duplicates": found.duplicates,
    }
    for name, count in rows.items():
        if count is not None:
            table.add_row(name, wording.count(count))
    return table

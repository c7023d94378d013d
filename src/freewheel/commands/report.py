"""``freewheel report``: the report of runs that were recorded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from freewheel.commands.shell import out, reported
from freewheel.compare import INDEX, recorded
from freewheel.comparison import Comparison
from freewheel.report import Run
from freewheel.rundir import EVENTS, REPORT


@reported
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", show_default=False, help="Folders of runs, or of a comparison."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="The HTML file. Default: report.html in the folder, or here for several folders.",
        ),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Write every plot as a PNG file beside it, too.")
    ] = False,
) -> None:
    """Make the report of a run, or of several to compare them.

    [bold]Examples[/bold]

      freewheel report runs/20260101-120000-images-hogwild --png

      freewheel report runs/first runs/second -o both.html
    """
    folders = [_latest(folder) for folder in folders]
    kept = recorded(folders[0]) if len(folders) == 1 else None  # one folder has a baseline of its own
    comparison = kept or Comparison(tuple(gather(folders)))
    path = comparison.report(output or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT)), png=png)
    if len({run.label for run in comparison.runs}) > 1:
        for line in comparison.verdict:
            out().print(line, markup=False)
    out().print(f"Report: {path}", markup=False, soft_wrap=True)


def gather(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, labelled so that repeats share a label and unlike runs do not.

    Raises:
        DataError: a folder holds no run.
    """
    found = [(folder, run) for folder in folders for run in _runs(folder)]
    first: dict[str, dict[str, str]] = {}  # label -> settings -> name of the first folder that has them
    for folder, run in found:
        first.setdefault(run.label, {}).setdefault(_kind(run), folder.resolve().name)

    def label(run: Run) -> str:
        kinds = first[run.label]
        return run.label if len(kinds) == 1 else f"{run.label} ({kinds[_kind(run)]})"

    return [Run(label(run), run.events) for _, run in found]


def _latest(folder: Path) -> Path:
    """The folder itself, or the newest comparison in it (``runs/demo`` holds one for every demo)."""
    if (folder / INDEX).is_file() or (folder / EVENTS).is_file():
        return folder
    inside = sorted(index.parent for index in folder.glob(f"*/{INDEX}"))
    return inside[-1] if inside else folder


def _runs(folder: Path) -> Sequence[Run]:
    comparison = recorded(folder)
    return [Run.from_directory(folder)] if comparison is None else comparison.runs


def _kind(run: Run) -> str:
    """All settings but the seed."""
    begin = run.started
    settings = [
        begin.method,
        begin.engine,
        begin.workers,
        begin.batch_size,
        begin.planned_samples,
        begin.config,
    ]
    return json.dumps(settings, sort_keys=True, default=str)

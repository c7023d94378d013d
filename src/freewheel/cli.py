"""The command ``freewheel``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import freewheel
from freewheel.commands import (
    advise,
    audit,
    compare,
    data,
    demo,
    replay,
    report,
    run,
    shell,
    simulate,
    train,
    workers,
)

app = typer.Typer(
    name="freewheel",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(train.train)
app.command()(compare.compare)
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(run.run)
app.command()(workers.workers)
app.command()(simulate.simulate)
app.command()(advise.advise)
app.command()(report.report)
app.command()(replay.replay)
app.command()(audit.audit)
app.add_typer(data.app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"freewheel {freewheel.__version__}")
        raise typer.Exit


@app.callback()
def freewheel_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of errors.")] = False,
) -> None:
    """Train neural networks asynchronously, on all cores, and see whether it pays.

    [bold]To begin[/bold]

      freewheel demo              two minutes: Hogwild! beside synchronous training

      freewheel train images      one run, with a live display and a report

      freewheel compare images    methods with equal budgets, and a verdict

      freewheel run script.py     a training script of your own, in several processes

      freewheel simulate images   what a run would take on a thousand machines

      freewheel advise images     which method to use on how many machines

      freewheel data list         what there is to train on
    """
    shell.set_debugging(debug)


def main() -> None:
    """The entry point."""
    app(debug_first(sys.argv[1:]))


def debug_first(arguments: list[str]) -> list[str]:
    """``--debug`` may stand anywhere; ``run`` has it as an option of its own, for a script may have one, too.

    Example:
        >>> debug_first(["train", "images", "--debug"]), debug_first(["run", "script.py", "--debug"])
        (['--debug', 'train', 'images'], ['run', 'script.py', '--debug'])
    """
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command == "run" or "--debug" not in arguments:
        return arguments
    return ["--debug", *[argument for argument in arguments if argument != "--debug"]]

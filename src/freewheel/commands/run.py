"""``freewheel run``: a training script of one's own, in several processes on shared weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from freewheel.commands import shell
from freewheel.commands.options import parse_step_timeout
from freewheel.commands.values import parse_setting
from freewheel.errors import ConfigurationError
from freewheel.job import Supervision
from freewheel.methods import METHODS

Script = Annotated[
    list[str],
    typer.Argument(metavar="SCRIPT [ARGUMENTS]", show_default=False, help="The script, and its own."),
]


@shell.reported
def run(
    script: Script,
    workers: Annotated[int, typer.Option("--workers", "-n", metavar="N", help="Processes to start.")] = 2,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            show_default=False,
            help=f"One of {', '.join(METHODS)}; a script that has another of its own is refused.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            show_default=False,
            help="A setting of --method, such as bound=3; goes before the script's.",
        ),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option("--max-restarts", metavar="R", help="Deaths that the run survives.")
    ] = 3,
    step_timeout: Annotated[
        str | None,
        typer.Option(
            "--step-timeout",
            metavar="TIME",
            show_default=False,
            help="A worker that gives no sign of life for so long within its loop over worker.shard (batch,"
            " forward pass or step) hangs, and is started again: 30s, 5min. Default: never.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            show_default=False,
            help="PyTorch threads of each; OMP_NUM_THREADS if left out, else 1.",
        ),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Bind each worker to cores of its own.")] = False,
    module: Annotated[bool, typer.Option("--module", "-m", help="SCRIPT is the name of a module.")] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    """Run a PyTorch script in several processes that train one model.

    Options of freewheel come before the script, all that comes after it is the script's. Three lines of it
    change:

      worker = freewheel.join()

      optimizer = worker.optimizer(model, lr=0.01, momentum=0.9)

      for inputs, targets in worker.shard(loader): ...

    and what only one process is to do stands under [bold]if worker.is_main:[/bold]. Started by `python` as
    before, the script trains alone.

    Lines of its output have the worker's rank before them. A worker that dies is started again, from the
    beginning of the script: it passes over epochs that are done, and goes on with the shared weights. The
    exit code is that of the first worker that fails, 128 and the signal if it was killed.
    """
    from freewheel.dropin.launcher import Launcher, Plan

    shell.set_debugging(debug or shell.debugging())
    chosen = _settings(method, settings)
    for name, value, least in (("workers", workers, 1), ("max_restarts", max_restarts, 0)):
        if value < least:
            raise ConfigurationError(f"`{name}` must be a whole number >= {least}, got {value}")
    if threads is not None and threads < 1:
        raise ConfigurationError(f"`threads` must be a whole number >= 1, got {threads}")
    timeout = Supervision(step_timeout=parse_step_timeout(step_timeout)).step_timeout
    plan = Plan(_command(script, module), workers, method, chosen, max_restarts, pin, threads, timeout)
    out: BinaryIO = sys.stdout.buffer
    err: BinaryIO = sys.stderr.buffer
    colour = (sys.stdout.isatty(), sys.stderr.isatty())
    outcome = Launcher(plan, out, err, colour, _say).run()
    for rank, total in enumerate(outcome.totals):
        again = outcome.restarts[rank]
        restarts = f", {again} restart{'s' * (again != 1)}" if again else ""
        _say(
            f"worker {rank}: {total.steps:,} steps, {total.samples_per_second:,.0f} samples/s,"
            f" staleness {total.staleness:.2f}{restarts}"
        )
    if outcome.code:
        shell.say_error(f"{outcome.reason}; its own message stands above")
        raise typer.Exit(outcome.code)


def _say(message: str) -> None:
    shell.err().print(f"freewheel: {message}", markup=False, soft_wrap=True)


def _settings(method: str | None, given: list[str] | None) -> dict[str, Any]:
    chosen = dict(parse_setting(one) for one in given or ())
    if chosen and method is None:
        raise ConfigurationError("`set` is of a method; name it: --method downpour --set push_every=5")
    if method is not None:
        from freewheel.dropin.worker import made

        made(method, chosen)
    return chosen


def _command(script: list[str], module: bool) -> list[str]:
    if module:
        return [sys.executable, "-m", *script]
    if not Path(script[0]).is_file():
        raise ConfigurationError(f"`script`: there is no file {script[0]!r}; for a module use -m {script[0]}")
    return [sys.executable, *script]

"""What all commands share: consoles, errors as one line, and names of folders."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console

from freewheel.errors import ConfigurationError, FreewheelError, TrainingError

EXIT_TRAINING, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143
RUNS = Path("runs")

P = ParamSpec("P")
R = TypeVar("R")


def out() -> Console:
    """Standard output: results. Made anew each time, because tests and pipes replace ``sys.stdout``."""
    return Console(highlight=False, emoji=False)  # 3:100:5s is no smiley


def err() -> Console:
    """Standard error: progress and errors."""
    return Console(stderr=True, highlight=False, emoji=False)


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turns errors into one line on standard error and an exit code; ``--debug`` lets them through.

    SIGTERM, with which batch systems and containers end a program, counts as Ctrl-C, with a code of its own.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with _sigterm_as_ctrl_c():
            return run(*args, **kwargs)

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            err().print("Interrupted.", style="yellow")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except FreewheelError as error:
            if debugging():
                raise
            say_error(_as_options(str(error)))
            raise typer.Exit(EXIT_TRAINING if isinstance(error, TrainingError) else EXIT_USAGE) from None

    return wrapper


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Raises KeyboardInterrupt at SIGTERM; an interrupted command then ends with 143, as shells expect.

    Not where a signal is not ours to handle: in a thread, or where the parent has it ignored or handled.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    terminated = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except typer.Exit as end:
        if terminated and end.exit_code == EXIT_INTERRUPTED:
            raise typer.Exit(EXIT_TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


_debug = {"on": False}


def set_debugging(on: bool) -> None:
    """Whether errors show their traceback."""
    _debug["on"] = on


def debugging() -> bool:
    """Whether errors show their traceback."""
    return _debug["on"]


def say_error(message: str) -> None:
    """One red line on standard error."""
    console = err()
    console.print("error: ", style="bold red", end="")
    console.print(message, style="red", markup=False, soft_wrap=True)


def _as_options(message: str) -> str:
    """Names the arguments of the library as the options of the command: `batch_size` is --batch-size."""
    for name in OPTION_OF:
        message = message.replace(f"`{name}`", OPTION_OF[name])
    return message


OPTION_OF = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *("data", "method", "engine", "workers", "model", "batch_size", "lr", "momentum", "schedule"),
            *("granularity", "epochs", "max_seconds", "max_samples", "target", "evaluate_every", "seed"),
            *("intra_op_threads", "precision", "run_dir", "seeds", "record", "until"),
            *("set", "compression", "slow", "die", "checkpoint_every", "keep_checkpoints", "resume"),
            *("max_restarts", "step_timeout"),
            *("corrupt", "lose", "spread", "slowdown", "stragglers", "step_time", "shards", "times_from"),
        )
    },
    **{"contestants": "--methods", "backup_workers": "--set backup_workers", "in_flight": "--in-flight"},
}


def fresh_folder(name: str, parent: Path = RUNS) -> Path:
    """A path that is not there yet: ``runs/<time>-<name>``."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}" if name else time.strftime("%Y%m%d-%H%M%S")
    path, number = parent / stem, 2
    while path.exists():
        path, number = parent / f"{stem}-{number}", number + 1
    return path


def parse_workers(value: str) -> Any:
    """A number or "auto".

    Raises:
        ConfigurationError: neither.
    """
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise ConfigurationError(f"`workers` must be a whole number >= 1 or 'auto', got {value!r}") from None


def parse_target(value: str | None) -> tuple[str, float] | None:
    """``accuracy=0.9`` as a pair.

    Raises:
        ConfigurationError: not of this form.
    """
    if value is None:
        return None
    name, _, number = value.partition("=")
    try:
        return name.strip(), float(number)
    except ValueError:
        raise ConfigurationError(
            f"`target` must be METRIC=NUMBER, such as accuracy=0.9, got {value!r}"
        ) from None

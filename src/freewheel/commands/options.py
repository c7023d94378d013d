"""The options that ``train`` and ``compare`` share, and the settings they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from freewheel.commands.shell import parse_target, parse_workers
from freewheel.errors import ConfigurationError
from freewheel.recipes.images import images
from freewheel.recipes.settings import Budget, Hardware, Optimization, Recipe, Settings
from freewheel.recipes.text import text
from freewheel.simulation import parse_seconds

RECIPES: dict[str, Callable[[Settings], Recipe]] = {"images": images, "text": text}

_WHAT, _HOW, _WHEN, _WHERE = "What is trained", "How", "When it ends", "Where"

What = Annotated[str, typer.Argument(metavar="images|text", show_default=False, help="What to learn.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        rich_help_panel=_WHAT,
        show_default=False,
        help="images: fashion-mnist-small (the default), fashion-mnist, cifar10. text: tiny-shakespeare.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        rich_help_panel=_WHAT,
        show_default=False,
        help="images: cnn (default), mlp. text: lstm.",
    ),
]
WhatOrRun = Annotated[
    str | None,
    typer.Argument(metavar="images|text", show_default=False, help="What to learn. Left out with --resume."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        rich_help_panel=_HOW,
        show_default=False,
        help="Examples in one worker's minibatch. Default: 16.",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="X",
        rich_help_panel=_HOW,
        show_default=False,
        help="Learning rate. Default: the model's.",
    ),
]
Momentum = Annotated[
    float | None,
    typer.Option(
        "--momentum",
        metavar="X",
        rich_help_panel=_HOW,
        show_default=False,
        help="Momentum, 0 to 1. Default: 0.9; less for Hogwild! on more than two workers.",
    ),
]
ScheduleName = Annotated[
    str,
    typer.Option(
        "--schedule",
        metavar="NAME",
        rich_help_panel=_HOW,
        help="Learning rate over time: constant, cosine, linear; annealed: cosine if the end is known.",
    ),
]
GranularityName = Annotated[
    str,
    typer.Option(
        "--granularity",
        metavar="NAME",
        rich_help_panel=_HOW,
        help="model: one update a step. layer: each weight as soon as its gradient exists; less memory.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        rich_help_panel=_WHEN,
        show_default=False,
        help="Passes over the data. Default: 3 for images, 2 for text, if no other end is given.",
    ),
]
MaxSeconds = Annotated[
    float | None,
    typer.Option(
        "--max-seconds",
        metavar="S",
        rich_help_panel=_WHEN,
        show_default=False,
        help="Seconds of training; evaluation does not count.",
    ),
]
MaxSamples = Annotated[
    int | None,
    typer.Option(
        "--max-samples",
        metavar="N",
        rich_help_panel=_WHEN,
        show_default=False,
        help="Examples in all; characters for text.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="METRIC=X",
        rich_help_panel=_WHEN,
        show_default=False,
        help="End when it holds at two evaluations in a row: accuracy=0.9, loss=0.3; text: perplexity=6.",
    ),
]
EvaluateEvery = Annotated[
    int | None,
    typer.Option(
        "--evaluate-every",
        metavar="N",
        rich_help_panel=_WHEN,
        show_default=False,
        help="Examples between evaluations. Default: an epoch.",
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        rich_help_panel=_WHERE,
        help="threads; processes, for steps with much Python in them; auto tries which; serial, to debug.",
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        metavar="N|auto",
        rich_help_panel=_WHERE,
        help="auto: one per core for hogwild; one with all cores for synchronous; as before with --resume.",
    ),
]
IntraOpThreads = Annotated[
    int | None,
    typer.Option(
        "--intra-op-threads",
        metavar="N",
        rich_help_panel=_WHERE,
        show_default=False,
        help="PyTorch threads inside each worker. Default: 1; all cores for the one synchronous worker.",
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", metavar="NAME", rich_help_panel=_WHERE, help="float32 or bf16.")
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="FOLDER",
        rich_help_panel=_WHERE,
        show_default=False,
        help="Where to write everything. Default: runs/<time>-<what>.",
    ),
]

Record = Annotated[
    bool,
    typer.Option(
        "--record",
        rich_help_panel=_WHERE,
        help="Write the order of pulls and pushes and every step, too, for freewheel replay and audit.",
    ),
]
CheckpointEvery = Annotated[
    str,
    typer.Option(
        "--checkpoint-every",
        metavar="TIME",
        rich_help_panel=_WHERE,
        help="Training time between two checkpoints: 30s, 5min; one more at the end. auto: 60s. never: none.",
    ),
]
OnError = Annotated[
    str | None,
    typer.Option(
        "--on-error",
        metavar="restart|stop",
        rich_help_panel=_WHERE,
        show_default=False,
        help="A worker that raises an error (on processes also: dies, hangs) is replaced, or ends the run."
        " Default: replaced.",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option("--max-restarts", metavar="N", rich_help_panel=_WHERE, help="Of the whole run."),
]
StepTimeout = Annotated[
    str | None,
    typer.Option(
        "--step-timeout",
        metavar="TIME",
        rich_help_panel=_WHERE,
        show_default=False,
        help="A step that takes longer hangs: 30s, 5min. A worker process is then replaced, a thread ends the"
        " run. Default on processes: 60s, or 20 times the longest; on threads: none.",
    ),
]
KeepCheckpoints = Annotated[
    int,
    typer.Option("--keep-checkpoints", metavar="N", rich_help_panel=_WHERE, help="How many to keep."),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        rich_help_panel=_WHAT,
        show_default=False,
        help="Go on with a run from its newest checkpoint, with its settings; its end may be another, and on"
        " processes its --workers.",
    ),
]


def recipe(
    what: str,
    *,
    data: str | None,
    model: str | None,
    optimization: Optimization,
    budget: Budget,
    hardware: Hardware,
) -> Recipe:
    """The recipe of this name with these settings.

    Raises:
        ConfigurationError: an unknown recipe, or a setting that cannot be used.
        DataError: the data cannot be had.
    """
    if what not in RECIPES:
        raise ConfigurationError(f"what to train must be one of {', '.join(RECIPES)}, got {what!r}")
    if optimization.batch_size is not None and optimization.batch_size < 1:
        raise ConfigurationError(f"`batch_size` must be >= 1, got {optimization.batch_size}")
    return RECIPES[what](Settings(data, model, optimization, budget, hardware))


def budget_of(
    epochs: int | None,
    max_samples: int | None,
    max_seconds: float | None,
    target: str | None,
    evaluate_every: int | None,
) -> Budget:
    """The budget that these options describe."""
    return Budget(epochs, max_samples, max_seconds, parse_target(target), evaluate_every)


def parse_checkpoint_every(text: str) -> float | Literal["auto"] | None:
    """Seconds between two checkpoints; None for ``never``, "auto" for ``auto``.

    Raises:
        ConfigurationError: no time.

    Example:
        >>> parse_checkpoint_every("5min"), parse_checkpoint_every("never"), parse_checkpoint_every("auto")
        (300.0, None, 'auto')
    """
    if text == "never":
        return None
    if text == "auto":
        return "auto"
    try:
        return parse_seconds(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"`checkpoint_every`: {error}; never writes none") from error


def parse_step_timeout(text: str | None) -> float | None:
    """Seconds; None for the default.

    Raises:
        ConfigurationError: no time.

    Example:
        >>> parse_step_timeout("5min"), parse_step_timeout(None)
        (300.0, None)
    """
    try:
        return None if text is None else parse_seconds(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"`step_timeout`: {error}") from error


def hardware_of(engine: str, workers: str, intra_op_threads: int | None, precision: str) -> Hardware:
    """The hardware that these options describe."""
    return Hardware(engine, parse_workers(workers), intra_op_threads, precision)

"""``freewheel train --resume RUN``: the choices of that run, with another end perhaps."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Literal

import typer

from freewheel.checkpoints.folder import newest
from freewheel.commands import recipe_file
from freewheel.commands.recipe_file import RECIPE, Choice
from freewheel.errors import ConfigurationError
from freewheel.recipes.settings import Budget

ENDS = ("epochs", "max_samples", "max_seconds", "target")
_ALLOWED = {*ENDS, "evaluate_every", "run_dir", "checkpoint_every", "keep_checkpoints", "resume", "workers"}


def given_options(context: typer.Context) -> set[str]:
    """The parameters that were given on the command line, and not left at their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def run_of(resume: Path) -> Path:
    """The directory of the run: the folder itself, or that of the checkpoint that was named."""
    own = resume.parent.parent
    return own if not (resume / RECIPE).is_file() and (own / RECIPE).is_file() else resume


def choice_to_resume(
    resume: Path, budget: Budget, workers: int | Literal["auto"], given: Collection[str]
) -> Choice:
    """What the run was made of. Limits that are given take the place of all of its limits.

    Args:
        resume: the directory of the run, or of one of its checkpoints.
        budget: the limits that were given.
        workers: how many, if that was given; else there are as many as the run had last.
        given: names of the parameters that were.

    Raises:
        ConfigurationError: an option that only a new run can have.
        DataError: the directory is not one of a run of ``freewheel train``.
    """
    refused = sorted(set(given) - _ALLOWED)
    if refused:
        options = ", ".join("what to train" if name == "what" else f"`{name}`" for name in refused)
        raise ConfigurationError(
            f"`resume` goes on with the settings of that run, but {options} was given, too; leave it out, or"
            " begin a new run"
        )
    choice = recipe_file.read(run_of(resume))
    hardware = choice.settings.hardware
    if "workers" in given or hardware.workers != "auto":
        wanted = workers if "workers" in given else newest(resume).tree["identity"]["workers"]
        choice = replace(
            choice, settings=replace(choice.settings, hardware=replace(hardware, workers=wanted))
        )
    if budget == Budget():
        return choice
    was = choice.settings.budget
    every = budget.evaluate_every or was.evaluate_every
    limits = budget if any(getattr(budget, name) is not None for name in ENDS) else was
    return replace(choice, settings=replace(choice.settings, budget=replace(limits, evaluate_every=every)))

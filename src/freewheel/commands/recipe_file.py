"""What a run was made of, beside its other files: the choices that rebuild the recipe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from freewheel.commands.method_options import settings_of
from freewheel.commands.options import RECIPES
from freewheel.errors import DataError
from freewheel.events import Event, Monitor, RunStarted
from freewheel.recipes.settings import Budget, Hardware, Optimization, Recipe, Settings

RECIPE = "recipe.json"


@dataclass(frozen=True)
class Choice:
    """What the user of ``freewheel train`` chose.

    Attributes:
        what: name of the recipe.
        method: name of the method.
        settings: of the recipe.
        set: what was given as ``--set``.
        compression: what was given as ``--compression``.
        seed: of weights and order of data.
    """

    what: str
    method: str
    settings: Settings
    set: tuple[str, ...] = ()
    compression: str | None = None
    seed: int = 0

    def recipe(self) -> Recipe:
        """The recipe with these settings."""
        return RECIPES[self.what](self.settings)


def keeper(folder: Path, choice: Choice) -> Monitor:
    """A monitor that writes the choice to the folder of the run when it begins."""

    def keep(event: Event) -> None:
        if isinstance(event, RunStarted):
            (folder / RECIPE).write_text(json.dumps(_plain(choice), indent=2) + "\n", encoding="utf-8")

    return keep


def read(folder: Path) -> Choice:
    """The choice in the folder of a run.

    Raises:
        DataError: there is none, or it is damaged.
    """
    file = folder / RECIPE
    if not file.is_file():
        raise DataError(
            f"{folder} has no {RECIPE}: it is not a run of freewheel train; runs of your own script are"
            " replayed by freewheel.replay(folder, model, data, ...) and go on by"
            " freewheel.fit(..., resume=folder)"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        given, compression = tuple(values["set"]), values["compression"]
        method = values["method"]
        settings = _settings(values["settings"], settings_of(list(given), compression, (method,)))
        return Choice(values["what"], method, settings, given, compression, values["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def _plain(choice: Choice) -> dict[str, Any]:
    """The choice as JSON has it; settings of the method as they were typed, since some are rules."""
    settings = choice.settings
    optimization = {
        field.name: getattr(settings.optimization, field.name)
        for field in fields(settings.optimization)
        if field.name != "settings"
    }
    return {
        "what": choice.what,
        "method": choice.method,
        "set": list(choice.set),
        "compression": choice.compression,
        "seed": choice.seed,
        "settings": {
            "data": settings.data,
            "model": settings.model,
            "optimization": optimization,
            "budget": asdict(settings.budget),
            "hardware": asdict(settings.hardware),
        },
    }


def _settings(values: dict[str, Any], of_method: dict[str, Any]) -> Settings:
    target = values["budget"].pop("target")
    return Settings(
        values["data"],
        values["model"],
        Optimization(**values["optimization"], settings=of_method),
        Budget(**values["budget"], target=None if target is None else (str(target[0]), float(target[1]))),
        Hardware(**values["hardware"]),
    )

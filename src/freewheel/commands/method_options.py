"""The options that choose a method, and the settings of methods that they make."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from freewheel.commands.values import parse_compression, parse_setting
from freewheel.errors import ConfigurationError
from freewheel.methods import METHODS
from freewheel.recipes.choice import check_settings

_HOW = "How"

MethodName = Annotated[
    str,
    typer.Option("--method", metavar="NAME", rich_help_panel=_HOW, help=f"One of {', '.join(METHODS)}."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        rich_help_panel=_HOW,
        show_default=False,
        help="A setting of the method, such as bound=3 or push_every=5; may be given several times. Of one"
        " method among several: downpour.push_every=5.",
    ),
]
Compression = Annotated[
    str | None,
    typer.Option(
        "--compression",
        metavar="NAME[:X]",
        rich_help_panel=_HOW,
        show_default=False,
        help="What workers do to what they push: top_k:0.01, half, eight_bit or eight_bit:512.",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", rich_help_panel=_HOW, help="Of weights and order of data.")
]


def settings_of(given: list[str] | None, compression: str | None, names: tuple[str, ...]) -> dict[str, Any]:
    """The settings of methods that these options describe.

    Args:
        given: ``["bound=3", "downpour.push_every=5"]``.
        compression: ``top_k:0.01``, say.
        names: the methods of the run, or of the comparison.

    Raises:
        ConfigurationError: one that none of the methods has, or no value.
    """
    settings: dict[str, Any] = {}
    for one in given or ():
        name, value = parse_setting(one)
        if name in settings:
            raise ConfigurationError(f"`set` gives {name!r} twice")
        settings[name] = value
    if compression is not None:
        settings["compression"] = parse_compression(compression)
    known = tuple(name for name in names if name in METHODS)  # the others are refused with their own message
    if known:
        check_settings(settings, known)
    return settings

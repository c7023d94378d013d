"""Values as people write them on the command line: settings, compressions, slow machines, faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from freewheel.errors import ConfigurationError
from freewheel.rules import Rule, eight_bit, half, top_k
from freewheel.simulation import Corrupt, Die, corrupt, die, parse_seconds

T = TypeVar("T")
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def parse_setting(text: str) -> tuple[str, int | float | bool]:
    """``bound=3`` as a name and a number, or yes or no.

    Raises:
        ConfigurationError: not of this form.

    Example:
        >>> parse_setting("bound=3"), parse_setting("diloco.dynamic=yes"), parse_setting("alpha=0.2")
        (('bound', 3), ('diloco.dynamic', True), ('alpha', 0.2))
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if name and value.lower() in _WORDS:
        return name, _WORDS[value.lower()]
    for kind in (int, float):
        try:
            return _named(name, text), kind(value)
        except ValueError:
            continue
    raise ConfigurationError(f"`set` must be NAME=VALUE with a number, or yes or no, got {text!r}")


def _named(name: str, text: str) -> str:
    if not name:
        raise ConfigurationError(f"`set` must be NAME=VALUE, such as bound=3, got {text!r}")
    return name


def parse_compression(text: str) -> Rule:
    """``top_k:0.01``, ``half``, ``eight_bit`` or ``eight_bit:512`` as the rule.

    Raises:
        ConfigurationError: none of these.

    Example:
        >>> parse_compression("top_k:0.01").describe, parse_compression("eight_bit").describe
        ('top_k(share=0.01)', 'eight_bit()')
    """
    name, _, value = text.partition(":")
    makers: dict[str, Callable[[], Rule]] = {
        "top_k": lambda: top_k(_number("compression", value, float, "top_k:0.01")),
        "half": half,
        "eight_bit": lambda: (
            eight_bit(_number("compression", value, int, "eight_bit:256")) if value else eight_bit()
        ),
    }
    if name not in makers or (name == "half" and value):
        raise ConfigurationError(
            f"`compression` must be top_k:SHARE, half, eight_bit or eight_bit:BLOCK, got {text!r}"
        )
    return makers[name]()


def parse_slow(text: str) -> dict[int, float]:
    """``4x:1`` or ``2.5x:0,3`` as worker -> how many times slower it is.

    Raises:
        ConfigurationError: not of this form.

    Example:
        >>> parse_slow("2.5x:0,3")
        {0: 2.5, 3: 2.5}
    """
    factor, _, workers = text.partition(":")
    if not factor.endswith("x") or not workers:
        raise ConfigurationError(f"`slow` must be TIMESx:WORKER[,WORKER], such as 4x:1, got {text!r}")
    times = _number("slow", factor[:-1], float, "4x:1")
    return {_number("slow", worker, int, "4x:1"): times for worker in workers.split(",")}


def parse_die(text: str) -> Die:
    """``3:100`` or ``3:100:5s``: the worker, its step, and when it comes back.

    Raises:
        ConfigurationError: not of this form.

    Example:
        >>> parse_die("3:100:5s")
        Die(worker=3, step=100, back_after_s=5.0)
    """
    worker, _, rest = text.partition(":")
    step, _, back = rest.partition(":")
    remedy = "3:100 or 3:100:5s"
    number, when = (_number("die", one, int, remedy) for one in (worker, step))
    return die(number, when, parse_seconds(back) if back else None)


def parse_corrupt(text: str) -> Corrupt:
    """``0.1`` or ``0.1:100``: the share of the pushes, and how much longer the noise is than the gradient.

    Raises:
        ConfigurationError: not of this form.

    Example:
        >>> parse_corrupt("0.1:50").scale
        50.0
    """
    share, _, scale = text.partition(":")
    wanted = _number("corrupt", share, float, "0.1 or 0.1:100")
    return corrupt(wanted, _number("corrupt", scale, float, "0.1:100")) if scale else corrupt(wanted)


def _number(name: str, text: str, kind: Callable[[str], T], example: str) -> T:
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(f"`{name}` must be like {example}, got {text!r}") from None

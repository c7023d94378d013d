"""Times and rates as people write them on a command line: ``5ms``, ``1Gbit/s``, ``125MB/s``."""

from __future__ import annotations

import math
import re

from freewheel.errors import ConfigurationError

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+\.)\s*(\S*)\s*")
_RATE = re.compile(r"(k|M|G|T|Ki|Mi|Gi|)(bit|B)/s")


def parse_seconds(text: str) -> float:
    """A time in seconds.

    Args:
        text: a number and a unit: ns, us, ms, s, min or h.

    Raises:
        ConfigurationError: no such; a number without a unit is refused, for it might be milliseconds.

    Example:
        >>> parse_seconds("5ms"), parse_seconds("1.5 s"), parse_seconds("2min"), parse_seconds("0")
        (0.005, 1.5, 120.0, 0.0)
    """
    match = _QUANTITY.fullmatch(text)
    if match and match[2] in _SECONDS and math.isfinite(float(match[1])):
        return float(match[1]) * _SECONDS[match[2]]
    if match and not match[2] and float(match[1]) == 0:
        return 0.0
    wanted = "a time must be a number >= 0 and a unit, such as 5ms, 1.5s or 2min"
    if match and not match[2]:
        raise ConfigurationError(f"{wanted}; got {text!r}, without a unit: write {match[1]}ms or {match[1]}s")
    raise ConfigurationError(f"{wanted}; got {text!r}; the units are ns, us, ms, s, min, h")


def parse_rate(text: str) -> float:
    """A rate in bytes per second.

    Args:
        text: a number and bit/s or B/s, with k, M, G, T (powers of 1000) or Ki, Mi, Gi (powers of 1024)
            before it; or ``unlimited``.

    Raises:
        ConfigurationError: no such; ``mb`` and ``mbps`` are refused, for bits and bytes differ by eight.

    Example:
        >>> parse_rate("1Gbit/s"), parse_rate("125 MB/s"), parse_rate("1KiB/s"), parse_rate("unlimited")
        (125000000.0, 125000000.0, 1024.0, inf)
    """
    if text.strip() == "unlimited":
        return math.inf
    match = _QUANTITY.fullmatch(text)
    unit = _RATE.fullmatch(match[2]) if match else None
    if match and unit and 0 < float(match[1]) < math.inf:
        return float(match[1]) * _PREFIXES[unit[1]] / (8.0 if unit[2] == "bit" else 1.0)
    wanted = "a rate must be a number > 0 with bit/s or B/s, such as 1Gbit/s or 125MB/s, or unlimited"
    raise ConfigurationError(f"{wanted}; got {text!r}{_rate_remedy(match[1], match[2]) if match else ''}")


def _rate_remedy(number: str, unit: str) -> str:
    """What was probably meant: some unit with bits or bytes left open, or letters in the wrong case."""
    if float(number) == 0:
        return "; for a link that carries nothing use faults such as lose(1.0)"
    prefix = {"k": "k", "m": "M", "g": "G", "t": "T"}.get(unit[:1].lower(), "")
    return f"; write {number}{prefix}bit/s for bits, {number}{prefix}B/s for bytes (eight bits each)"

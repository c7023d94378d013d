"""Numbers as people read them; shared by the report and the progress display."""

from __future__ import annotations

import math

MISSING = "n/a"


def count(value: float) -> str:
    """A whole number with thousands separators.

    >>> count(1234567), count(float("nan"))
    ('1,234,567', 'n/a')
    """
    return f"{round(value):,}" if math.isfinite(value) else MISSING


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, to about three digits.

    >>> duration(0.0421), duration(5.25), duration(75), duration(4000)
    ('0.042 s', '5.2 s', '1 min 15 s', '1 h 6 min')
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(value: float) -> str:
    """Bytes in binary units.

    >>> size(512), size(3.5 * 2**20), size(2**31)
    ('512 B', '3.5 MiB', '2.0 GiB')
    """
    if not math.isfinite(value):
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def rate(value: float) -> str:
    """A rate: three digits when it is small, whole when it is large.

    >>> rate(12345.6), rate(62.0)
    ('12,346', '62.0')
    """
    if not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def metric(value: float) -> str:
    """A metric to four decimals, or to four digits when it is large.

    >>> metric(0.90125), metric(12.3456), metric(float("nan"))
    ('0.9012', '12.35', 'n/a')
    """
    if not math.isfinite(value):
        return MISSING
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def plural(number: int, noun: str, several: str = "") -> str:
    """The number and its noun, whose plural is given where it is not made with an s.

    >>> plural(1, "worker"), plural(1200, "worker")
    ('1 worker', '1,200 workers')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {several or noun + 's'}"

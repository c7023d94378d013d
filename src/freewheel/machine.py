"""What this machine has."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")

Mallopt = Callable[[int, int], int]
"""Sets a parameter of the C allocator to a value; 0 if it refuses."""


def cores(cgroup: Path = CGROUP) -> int:
    """Processor cores that this process may use, at least 1.

    A quota of processor time counts, rounded up: ``docker run --cpus 2`` leaves all cores visible, and more
    workers than that would only wait for each other.

    Args:
        cgroup: where the control groups are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Seconds of processor time in a second; None without a limit, or where none can be read."""
    version_2, version_1 = cgroup / "cpu.max", cgroup / "cpu"
    try:
        if version_2.is_file():
            quota, period = version_2.read_text(encoding="ascii").split()
        else:
            quota, period = ((version_1 / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        share = int(quota) / int(period)  # "max" is no number: no limit, and neither is -1
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return share if share > 0 else None


def keep_large_blocks(mallopt: Mallopt | None = None) -> bool:
    """Tells the C allocator to keep large freed blocks instead of giving them back to the system.

    PyTorch allocates activations and gradients anew in every step. By default glibc maps large blocks freshly
    each time, and every first touch of a page is a fault: a fifth of a small convolutional network's step.
    Memory that training has used then stays with the process until it ends. The setting is the process's.

    Args:
        mallopt: in place of the C library's.

    Returns:
        Whether it could be done: on Linux with glibc.
    """
    mallopt = mallopt or _mallopt()
    if mallopt is None:
        return False
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGE)
    trimmed = mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # worth having on its own
    return mapped and bool(trimmed)


def _mallopt() -> Mallopt | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return None
    return found


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE = 2**30, 2**25  # older glibc refuses more than HEAP_MAX_SIZE / 2, the documented maximum

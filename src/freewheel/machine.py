"""What this machine has."""

from __future__ import annotations

import ctypes
import os
import sys


def cores() -> int:
    """Processor cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def keep_large_blocks() -> bool:
    """Tells the C allocator to keep large freed blocks instead of giving them back to the system.

    PyTorch allocates activations and gradients anew in every step. By default glibc maps large blocks freshly
    each time, and every first touch of a page is a fault: a fifth of a small convolutional network's step.
    Memory that training has used then stays with the process until it ends. The setting is the process's.

    Returns:
        Whether it could be done: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h

"""What the fork server imports once, so that worker processes need not.

Where a system ends a program it may signal all of its processes at once. The server and the workers leave
that to the main process, which lets the run end well: they end with it.
"""

from __future__ import annotations

import signal
import sys

from freewheel.engines.processes import worker
from freewheel.engines.processes.nursery import SIGNALS

__all__ = ["worker"]


def in_fork_server() -> bool:
    """Whether this process is a fork server, and not one that imports this module for whatever reason."""
    return any("multiprocessing.forkserver" in argument for argument in sys.orig_argv)


if in_fork_server():
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the main process has had them wait

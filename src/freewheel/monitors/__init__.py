"""Who listens to the events of a run: a monitor is any callable that takes one event."""

from __future__ import annotations

from freewheel.monitors.progress import progress
from freewheel.monitors.recorder import recorder

__all__ = ["progress", "recorder"]

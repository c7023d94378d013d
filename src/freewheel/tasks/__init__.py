"""Tasks: what one worker computes in one step."""

from freewheel.tasks.base import StepReport, Task, WorkerContext
from freewheel.tasks.supervised import Supervised

__all__ = ["StepReport", "Supervised", "Task", "WorkerContext"]

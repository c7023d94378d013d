"""Where ``freewheel.testing`` gets hold of runs; costs a look at an empty list where nothing is injected."""

from __future__ import annotations

from collections.abc import Callable

from freewheel.job import Job

Wrap = Callable[[Job, str], Job]
"""``(job, name of the engine) -> job``, called for every run that begins."""

wraps: list[Wrap] = []


def injected(job: Job, engine: str) -> Job:
    """The job as tests want it."""
    for wrap in wraps:
        job = wrap(job, engine)
    return job

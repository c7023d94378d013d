"""A run that goes on with another number of workers."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from freewheel.checkpoints.cut import restored, taken
from freewheel.checkpoints.origin import identity_of
from freewheel.checkpoints.resizing import resized
from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree
from freewheel.engines.session import Session
from freewheel.events import WorkersChanged
from freewheel.job import Job


class Change(NamedTuple):
    """Another number of workers.

    Attributes:
        before: how many there were.
        job: with as many as there are to be.
        tree: the state of its run.
        began: when they stood still, by the system's monotonic clock.
        last: what a checkpoint would hold if the run ended before the next workers begin.
    """

    before: int
    job: Job
    tree: Tree
    began: float
    last: Cut | None

    def told(self, seconds: float) -> WorkersChanged:
        """The event, now that everybody is there, with the training clock's time."""
        took = time.perf_counter() - self.began
        return WorkersChanged(self.before, self.job.setup.workers, seconds, took)


def change(
    session: Session, workers: int, place: Tree, steps: list[int], live: bool, last: Cut | None
) -> Change:
    """What a run goes on from; everybody stands still, and has pushed what it held back.

    Args:
        session: of the run until now.
        workers: how many there are to be.
        place: where in its plan the engine is.
        steps: that each worker has finished.
        live: the source goes on as it is.
        last: what a checkpoint would hold if the run ended now.
    """
    began, job = time.perf_counter(), session.job
    tree = taken(session, place).tree
    if live:
        tree["source"] = None
    tree = resized(tree, workers, job.method.leases == "fixed", steps)
    former = len(tree["server"]["book"]["slots"])
    after = replace(job, setup=replace(job.setup, workers=workers, former=former))
    if after.checkpoints is not None:
        identity = identity_of(after, session.record.engine)
        after = replace(after, checkpoints=replace(after.checkpoints, identity=identity))
    return Change(job.setup.workers, after, tree, began, last)


def taken_over(after: Session, earlier: Session, change: Change) -> Tree:
    """Has a session go on where another stood, which is closed; its place in the plan.

    Args:
        after: of the job with the other number, its workers there.
        earlier: of the run until now.
        change: of the number of workers.
    """
    try:
        after.record.succeed(earlier.record, change.tree["record"])
        return restored(after, change.tree)
    except BaseException:
        after.close()
        raise

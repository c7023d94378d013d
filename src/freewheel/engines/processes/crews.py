"""A run from its first crew to its last: one works until somebody wants another number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from freewheel.checkpoints.origin import identity_of
from freewheel.checkpoints.resizing import resized
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.processes.crew import Change, Crew
from freewheel.engines.processes.session import ProcessSession
from freewheel.engines.supervisor import Supervisor
from freewheel.events import Monitor
from freewheel.job import Job, Result


def trained(job: Job, monitors: Sequence[Monitor], engine: str, pin: bool) -> Result:
    """Trains, whatever happens; afterwards no process is left.

    Args:
        job: what to run.
        monitors: who hears of it.
        engine: its name.
        pin: bind each worker to cores of its own.
    """
    supervisor, interrupts = Supervisor(job.supervision), Interrupts()
    session = ProcessSession(job, monitors, engine)
    with ExitStack() as stack:
        stack.callback(session.close)
        crew = Crew(session, pin, supervisor, interrupts)
        stack.callback(crew.close)
        crew.hire(session.resume())
        with interrupts:
            while (change := crew.work()) is not None:
                interrupts.hold()  # until the next crew works
                crew.close()
                session = crew.session
                try:
                    after, place = session.successor(*_resized(session, change))
                    crew = Crew(after, pin, supervisor, interrupts)
                    stack.callback(crew.close)
                    crew.hire(place, change)
                except BaseException as error:
                    session.fail(error)
                    raise
    return crew.session.result()


def _resized(session: ProcessSession, change: Change) -> tuple[Job, dict[str, object]]:
    """The job with as many workers as are wanted, and the state of its run for as many."""
    job, before = session.job, session.job.setup
    fixed = job.method.leases == "fixed"
    tree = resized(change.tree, change.workers, fixed, change.steps)
    former = len(tree["server"]["book"]["slots"])
    job = replace(job, setup=replace(before, workers=change.workers, former=former))
    if job.checkpoints is not None:
        identity = identity_of(job, session.record.engine)
        job = replace(job, checkpoints=replace(job.checkpoints, identity=identity))
    return job, tree

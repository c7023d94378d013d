"""A run from its first crew to its last: one works until somebody wants another number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from freewheel.engines.changes import taken_over
from freewheel.engines.interrupts import Interrupts
from freewheel.engines.processes.crew import Crew
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
                earlier = crew.session
                try:
                    crew.close()
                    session = ProcessSession(change.job, monitors, engine)
                    stack.callback(session.close)
                    place = taken_over(session, earlier, change)
                    crew = Crew(session, pin, supervisor, interrupts)
                    stack.callback(crew.close)
                    crew.hire(place, change)
                except BaseException as error:
                    earlier.save(change.last)
                    earlier.fail(error)
                    raise
    return crew.session.result()

"""Recordings: the order in which the workers of a run met the server, so that it can be run again.

log.py      what a recording is, on disk and in memory
trace.py    takes it down while a run goes on
identity.py what a recording is of: everything that a replay must have in common with the run
checks.py   which runs can be recorded
folder.py   writes it beside the run's other files
"""

from freewheel.recording.log import Kind, Operation, Recording, digest
from freewheel.recording.trace import Trace

__all__ = ["Kind", "Operation", "Recording", "Trace", "digest"]

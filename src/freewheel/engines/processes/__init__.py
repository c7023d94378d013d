"""The processes engine: every worker in a process of its own, on one copy of the weights and of the data.

A worker has an interpreter of its own, so the Python of a step costs the others nothing, and a worker that
crashes takes nobody with it.

- ``engine.py`` the engine; ``session.py`` what a run shares; ``shared.py`` the memory; ``board.py`` counts
- ``nursery.py`` starts processes; ``preloaded.py`` what all import; ``parcel.py`` what they are given
- ``crew.py`` the main process's loop; ``crews.py`` from one number of workers to the next
- ``roster.py`` the processes it has; ``desk.py`` what it does for who asks; ``accounts.py`` their work
- ``stragglers.py`` which are slow; ``../supervisor.py`` what becomes of those that fail or hang
- ``worker.py`` a worker's loop; ``delivery.py`` where its updates go; ``batches.py`` its batches
- ``messages.py``, ``mailbox.py``, ``lease_queue.py`` what travels; ``endings.py`` how workers end
"""

from freewheel.engines.processes.engine import Processes

__all__ = ["Processes"]

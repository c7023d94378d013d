"""Sessions of recordings: one that is taken down, and one that is replayed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from freewheel.engines.base import intra_op
from freewheel.engines.plan import Segment
from freewheel.engines.session import Session
from freewheel.errors import DataError
from freewheel.events import Monitor, RunFinished
from freewheel.job import Job
from freewheel.link import Link, Pull, Send
from freewheel.recording.log import Kind
from freewheel.recording.trace import Trace, TracedServer
from freewheel.server import Server
from freewheel.sources import Lease
from freewheel.tasks import WorkerContext


def session_of(job: Job, monitors: Sequence[Monitor], engine: str) -> Session:
    """The session of a job: one that is taken down if the job has a trace."""
    return Session(job, monitors, engine) if job.trace is None else RecordedSession(job, monitors, engine)


class RecordedSession(Session):
    """Notes every operation in the job's trace.

    A worker's step that is given up (a loss that is not finite) starts again from the running statistics that
    it pulled last, and not from the server's of the moment, which are read without a lock.
    """

    @property
    def trace(self) -> Trace:
        """Where operations are noted."""
        assert self.job.trace is not None
        return self.job.trace

    def _server(self, kind: type[Server] = Server) -> Server:
        server = super()._server(TracedServer)
        assert isinstance(server, TracedServer)
        server.trace = self.trace
        return server

    def _link(self, context: WorkerContext, flat: Tensor, send: Send, send_now: Send, pull: Pull) -> Link:
        context.shared_statistics = self.parameters.statistics.clone()

        def noted(target: Tensor) -> tuple[int, ...]:
            with self.trace.lock:
                self.trace.note(Kind.PULL, context.worker, version=self.server.version)
                context.shared_statistics.copy_(self.parameters.statistics)
                return pull(target)

        return super()._link(context, flat, send, send_now, noted)

    def _pace(self, worker: int) -> float:
        pace = super()._pace(worker)
        self.trace.note_pace(worker, pace)
        return pace

    def begin_step(self, worker: int, segment: Segment, step: int) -> Lease | None:
        """A lease for this worker, noted when its step is ready to compute."""
        lease = super().begin_step(worker, segment, step)
        if lease is not None:
            with self.trace.lock:  # the version, too, must be that of this place in the order
                self.trace.note(Kind.STEP, worker, lease.number, lease.samples, version=self.server.version)
        return lease

    def settle(self, final: bool) -> bool:
        """Has the workers push what they hold back; with as many threads as a worker, for the same sums."""
        self.trace.note(Kind.SETTLE, number=int(final), version=self.server.version)
        self.trace.settling = True
        try:
            with intra_op(self.job.setup.intra_op_threads):
                return super().settle(final)
        finally:
            self.trace.settling = False

    def evaluate(self, again: bool = False) -> None:
        """Measures the model."""
        self.trace.note(Kind.EVALUATE, version=self.server.version)
        super().evaluate(again)

    def _finish(self) -> RunFinished:
        self.trace.finished = super()._finish()
        return self.trace.finished


class ReplayedServer(Server):
    """A server that has somebody look on when a worker retires, which may complete a round."""

    around: Callable[[int, Callable[[], None]], None]

    def retire(self, worker: int) -> None:
        """Rounds go on without the worker."""
        self.around(worker, partial(super().retire, worker))


class ReplayedSession(Session):
    """A session whose workers read the recorded paces."""

    paces: list[deque[float]]

    def _server(self, kind: type[Server] = Server) -> Server:
        return super()._server(ReplayedServer)

    def _pace(self, worker: int) -> float:
        if not self.paces[worker]:
            raise DataError(f"the recording is damaged: worker {worker} reads a pace that was not recorded")
        return self.paces[worker].popleft()

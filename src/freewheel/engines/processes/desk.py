"""What the main process does for workers that ask.

It applies their updates, lets them start, and hands out batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, final

from freewheel.engines.interrupts import Interrupts
from freewheel.engines.plan import Segment
from freewheel.engines.processes.batches import fetched_by_workers
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import Answer, Ask, BatchSent, Done, Line, NoBatch, Push, Start
from freewheel.engines.processes.session import ProcessSession
from freewheel.errors import ConfigurationError, FreewheelError, WorkerError
from freewheel.gates import NEVER_WAITED_FOR
from freewheel.server import Receipt
from freewheel.sources import Lease


@final
class Desk:
    """Answers workers.

    Args:
        session: of the run.
        lines: to the workers; there when the first of them speaks.
        interrupts: signals wait while a batch is sent.

    Attributes:
        serves: updates are applied here: in rounds, behind gates, and by rules that must not race.
        gated: workers ask before every step.
        queued: whoever is ready takes the next number from a queue.
        mailboxes: where their updates lie.
    """

    def __init__(self, session: ProcessSession, lines: list[Line], interrupts: Interrupts) -> None:
        self.session = session
        self._lines = lines
        self._interrupts = interrupts
        job = session.job
        method, workers = job.method, job.setup.workers
        # One worker waits for nobody and races with nobody, whatever the method.
        self.gated = workers > 1 and not method.rounds and not method.gate.open
        waits = workers > 1 and (method.rounds or not method.gate.open)
        self.serves = waits or (workers > 1 and method.rule_for(workers).exclusive)
        self.queued = fetched_by_workers(job.source) and method.leases == "queue"
        self.mailboxes: list[Mailbox] = []
        self._segment = Segment(0, 0)
        self._steps = [0] * workers  # finished, in the whole run
        self._progress = [0] * workers
        self._waiting: dict[int, Receipt | None] = {}  # who waits to start a step -> receipt of the last one
        self._asking: dict[int, int] = {}  # who waits for a batch -> for which step of the segment
        self._held: dict[int, Lease] = {}  # batches that workers were sent
        self._received: dict[int, tuple[int, Receipt]] = {}  # the last step that was pushed, and its receipt
        self._stopping = False
        self.paused: set[int] = set()  # who waits for a checkpoint to be taken
        self.torn = False  # reading data was interrupted: nobody knows where the source stands
        self._pausing = False  # a checkpoint is to be taken

    def pause(self) -> None:
        """A checkpoint is to be taken: who waits to start a step is let go, to deposit what it holds.

        So is who comes to wait meanwhile. A worker that is replaced after its step may have to wait for one
        that stands still before it, and neither would ever go on.
        """
        self._pausing = True
        self._release()

    def go_on(self) -> None:
        """The checkpoint is taken, or given up: who may start a step does."""
        self._pausing = False
        for worker in self.paused:
            self._waiting[worker] = None
        self.paused.clear()
        self._release()

    def place(self) -> dict[str, list[int]]:
        """How far each worker is, for a checkpoint."""
        return {"steps": list(self._steps), "progress": list(self._progress)}

    def put_back(self, place: Mapping[str, list[int]]) -> None:
        """Each worker is as far as it was then."""
        self._steps, self._progress = list(place["steps"]), list(place["progress"])

    def open(self, segment: Segment, readmit: bool = True) -> None:
        """A segment begins: everybody takes part again, unless it goes on where a checkpoint was taken."""
        if readmit:
            self.session.server.readmit()
        self._segment = segment
        self._progress = list(self._steps)

    def serve(self, worker: int, message: Any) -> None:
        """Handles what a worker asks for."""
        match message:
            case Push():
                self._push(worker, message)
            case Start(finished):
                self._wait(worker, None, finished)
            case Ask(step):
                self._asking[worker] = step
            case Done(carried):
                lease = self._held.pop(worker)
                if lease.carry is not None:
                    lease.carry.value = carried
                self.session.job.source.acknowledge(lease)

    def forget(self, worker: int) -> Receipt | None:
        """The worker has died: nothing that it asked for will be answered.

        What it had in hand may be taken again.

        Returns:
            The receipt of the step that it was in, where its gradient has been pushed: it must not be taken
            again.
        """
        self._waiting.pop(worker, None)
        self._asking.pop(worker, None)
        self.paused.discard(worker)
        step, receipt = self._received.pop(worker, (-1, None))
        held = self._held.pop(worker, None)
        if step != self.session.board.steps[worker] or self.session.job.method.in_flight:
            receipt = None
        if held is not None and receipt is not None:
            self.session.job.source.acknowledge(held)
        elif held is not None:
            self.session.job.source.give_back(held)
        return receipt

    def waits(self, worker: int) -> bool:
        """Whether the worker waits for others, or for a batch."""
        return worker in self._waiting or worker in self._asking or worker in self.paused

    def retire(self, worker: int) -> None:
        """The worker has no further step in this segment: nobody waits for it."""
        if self.serves:
            self._progress[worker] = NEVER_WAITED_FOR
            self.session.server.retire(worker)
            self._release()

    def dismiss(self) -> None:
        """Nobody starts another step: those who wait are told so."""
        self._stopping = True
        self.go_on()
        self.hand_out()

    # --- updates ---

    def _push(self, worker: int, push: Push) -> None:
        update = self.mailboxes[worker].read(push)
        try:
            with self._in_the_name_of(worker):
                receipt = self.session.server.push(update)
        except Exception:
            self._waiting[worker] = None  # to be dismissed
            raise
        if receipt.status == "duplicate" and not push.now:
            return  # the worker waits for the answer to the first one
        if update.last and not push.now:
            self._received[worker] = self.session.board.steps[worker], receipt
        if push.now:
            self._send(worker, Answer(receipt, not self._stopping))
        elif update.last:
            self._wait(worker, receipt, finished=True)

    def _wait(self, worker: int, receipt: Receipt | None, finished: bool) -> None:
        """The worker waits to start its next step."""
        if finished:
            self._steps[worker] += 1
            self._progress[worker] = self._steps[worker]
        self._waiting[worker] = receipt
        self._release()

    def _release(self) -> None:
        """Lets those go who may start, or are to deposit what they hold."""
        for worker in list(self._waiting):
            if self._stopping or self._pausing or self.session.may_start(worker, self._progress):
                self._send(worker, Answer(self._waiting.pop(worker), not self._stopping))

    # --- batches ---

    def hand_out(self) -> None:
        """Reads and sends the batches that workers have asked for."""
        for worker, step in list(self._asking.items()):
            with self._interrupts.held(insist=True):
                self.torn = True
                with self._in_the_name_of(worker):
                    lease = None if self._stopping else self._lease(worker, step)
                self.torn = False
                del self._asking[worker]
                self._send_batch(worker, lease)

    def _send_batch(self, worker: int, lease: Lease | None) -> None:
        if lease is None:
            self._send(worker, NoBatch())
            return
        self._held[worker] = lease
        carry = lease.carry
        carried = None if carry is None else carry.value
        message = BatchSent(
            lease.number, lease.batch, lease.samples, lease.stream, carry is not None, carried
        )
        try:
            self._send(worker, message)
        except Exception as error:
            raise ConfigurationError(
                f"`data` gives batches that cannot be sent to the worker processes ({type(error).__name__}:"
                f" {error}); use engine='threads'"
            ) from error

    def _lease(self, worker: int, step: int) -> Lease | None:
        job = self.session.job
        if job.method.leases == "fixed":
            return job.source.take_number(self._segment.number(step * job.setup.workers + worker))
        return job.source.take()

    @contextmanager
    def _in_the_name_of(self, worker: int) -> Iterator[None]:
        """Says for whose step something failed here."""
        try:
            yield
        except FreewheelError:
            raise
        except Exception as error:
            raise WorkerError(worker, self.session.board.steps[worker], error) from error

    def _send(self, worker: int, message: Any) -> None:
        with suppress(ConnectionError):  # it has died, which is heard of soon
            self._lines[worker].send(message)

"""How a worker process has its updates applied: by itself, or by the main process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import Answer, Line, Start
from freewheel.engines.worker import Life
from freewheel.server import Receipt, Server
from freewheel.tasks import WorkerContext
from freewheel.update import Update


class Delivery(ABC):
    """Where a worker's updates go."""

    @abstractmethod
    def send(self, update: Update) -> Receipt | None:
        """Delivers an update after a step; None if its receipt comes with :meth:`conclude`."""

    @abstractmethod
    def send_now(self, update: Update) -> Receipt | None:
        """Delivers an update and waits until it is applied."""

    @abstractmethod
    def open(self) -> None:
        """A segment begins: everybody takes part again."""

    @abstractmethod
    def may_begin(self, asks: bool) -> bool:
        """Waits until the worker may start its first step of a segment; False: it is to stand still.

        Args:
            asks: ask in any case: an earlier life may have to be waited for.
        """

    @abstractmethod
    def conclude(self, context: WorkerContext) -> tuple[Receipt | None, bool]:
        """The receipt of a finished step, and whether the worker may start another; waits until it may."""


@final
class Direct(Delivery):
    """The worker applies its updates itself, to the shared weights, as threads without locks do.

    For methods in which nobody waits, and rules that may race.
    """

    def __init__(self, server: Server, life: Life) -> None:
        self._server, self._life = server, life

    def send(self, update: Update) -> Receipt:
        """Applies it."""
        self._life.stamp(update)
        return self._server.push(update)

    def send_now(self, update: Update) -> Receipt:
        """Applies it."""
        return self.send(update)

    def open(self) -> None:
        """A round of one worker."""
        self._server.readmit()

    def may_begin(self, asks: bool) -> bool:
        """Always."""
        return True

    def conclude(self, context: WorkerContext) -> tuple[Receipt | None, bool]:
        """Known since the push."""
        return context.receipt, True


@final
class Served(Delivery):
    """The main process applies the updates, and says who may go on: rounds, gates, rules with buffers.

    The update lies in shared memory; a message tells of it. No lock exists that a worker could die with. The
    answer to a step's last push comes when the worker may start its next step, so that a step costs one
    message in each direction.

    Args:
        line: to the main process.
        mailbox: this worker's.
        gated: ask before every step, also after one that has pushed nothing.
        life: of the worker.
    """

    def __init__(self, line: Line, mailbox: Mailbox, gated: bool, life: Life) -> None:
        self._line, self._life = line, life
        self._mailbox = mailbox
        self._gated = gated
        self._owed = False  # the main process will answer a push of this step

    def send(self, update: Update) -> None:
        """Hands it to the main process."""
        self._life.stamp(update)
        self._line.send(self._mailbox.write(update, now=False))
        self._owed = update.last

    def send_now(self, update: Update) -> Receipt | None:
        """Hands it to the main process and waits for the receipt."""
        self._life.stamp(update)
        self._line.send(self._mailbox.write(update, now=True))
        return self._answer().receipt

    def open(self) -> None:
        """Nothing: the main process knows."""

    def may_begin(self, asks: bool) -> bool:
        """Asks, if there is a gate."""
        return not (self._gated or asks) or self._ask(finished=False)

    def conclude(self, context: WorkerContext) -> tuple[Receipt | None, bool]:
        """Waits for the receipt of the push, if there was one, and until the next step may start."""
        if self._owed:
            self._owed = False
            answer = self._answer()
            context.receipt = answer.receipt
            return answer
        return context.receipt, not self._gated or self._ask(finished=True)

    def _ask(self, finished: bool) -> bool:
        self._line.send(Start(finished))
        return self._answer().go

    def _answer(self) -> Answer:
        answer = self._line.receive()
        assert isinstance(answer, Answer)
        return answer

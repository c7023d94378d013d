"""The launcher's side: it holds the shared weights, applies updates that must not race, and deals batches."""

from __future__ import annotations

import math
import pickle
import socket
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import reduction
from typing import Any, NamedTuple, final

import torch

from freewheel.dropin.deal import Deal
from freewheel.dropin.messages import (
    Barrier,
    Dealt,
    Exhausted,
    Order,
    Passed,
    Refused,
    Register,
    Retire,
    Returned,
    Take,
    Unordered,
    Welcome,
)
from freewheel.dropin.pulse import Pulse
from freewheel.dropin.tally import Tally
from freewheel.engines.processes.board import Board
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import Answer, Line, Push, Start
from freewheel.engines.processes.parcel import Parcel, packed
from freewheel.engines.processes.session import share
from freewheel.engines.processes.shared import Arena
from freewheel.engines.worker import Equipment
from freewheel.errors import ConfigurationError
from freewheel.gates import NEVER_WAITED_FOR
from freewheel.job import Setup
from freewheel.methods import Method
from freewheel.params import Entry, Parameters
from freewheel.server import Receipt, Server


class Common(NamedTuple):
    """What all workers share, once the first model is known."""

    parameters: Parameters
    method: Method
    label: str
    server: Server
    mailboxes: list[Mailbox]
    gated: bool
    tally: Tally
    board: Board
    arena: Arena
    parcel: Parcel


@final
class Hub:
    """Answers the workers.

    Args:
        workers: how many.
        seed: of the rules that draw.

    Attributes:
        lines: to the workers that are alive.
    """

    def __init__(self, workers: int, seed: int = 0) -> None:
        self.workers = workers
        self.seed = seed
        self.lines: dict[int, Line] = {}
        self.common: Common | None = None
        self._gone: set[int] = set()  # for good
        self._away: set[int] = set()  # take no step for now: nobody waits for them
        self._progress = [0] * workers  # finished steps, as gates see them
        self._registering: dict[int, Register] = {}
        self._waiting: dict[int, Receipt | None] = {}  # who waits to start a step -> receipt of the last one
        self._at_barrier: dict[int, int] = {}  # who waits there -> number of the barrier
        self._barriers = 0  # that all have passed
        self._deals: dict[tuple[int, int], Deal] = {}
        self._opened: set[tuple[int, int]] = set()  # epochs that somebody has had a batch of
        self._at_door: dict[int, tuple[int, int]] = {}  # who waits for an epoch to open

    # --- lives ---

    def welcome(self, worker: int, line: Line) -> None:
        """A process of this worker was started."""
        self.lines[worker] = line

    def bury(self, worker: int, for_good: bool) -> None:
        """The worker's process has ended: what it held is given to others, and nobody waits for it."""
        line = self.lines.pop(worker, None)
        if line is not None:
            line.close()
        self._registering.pop(worker, None)
        self._waiting.pop(worker, None)
        self._at_barrier.pop(worker, None)
        self._at_door.pop(worker, None)
        for deal in self._deals.values():
            deal.bury(worker)
        if for_good:
            self._gone.add(worker)
        if self.common is not None:
            Pulse(self.common.board, worker).leave()
        self._retire(worker)
        self._admit()
        self._open_barrier()
        self._open_door()

    def is_busy(self, worker: int) -> bool:
        """Whether the worker is within its loop, and waits for nobody: it is to be heard of."""
        if self.common is None or not self.common.board.batch[worker]:
            return False
        held = worker in self._waiting or worker in self._at_barrier or worker in self._at_door
        return not held

    def close(self) -> None:
        """Lets go of the shared memory."""
        for line in self.lines.values():
            line.close()
        if self.common is not None:
            self.common.server.dissolve()
            arena, self.common = self.common.arena, None
            arena.close()

    # --- what workers ask ---

    def serve(self, worker: int, message: Any) -> None:
        """Handles a worker's message."""
        match message:
            case Push():
                self._push(worker, message)
            case Start(finished):
                self._wait(worker, None, finished)
            case Take(shard, epoch):
                self._take(worker, shard, epoch)
            case Returned():
                self._put_back(worker, message)
            case Order(shard, epoch, batches):
                self._deals.setdefault((shard, epoch), Deal(batches))
            case Retire():
                self._retire(worker)
            case Barrier(number):
                self._stop_at(number, worker)
            case Register():
                self._registering[worker] = message
                self._admit()
            case _:
                raise AssertionError(message)

    def _send(self, worker: int, message: Any) -> None:
        with suppress(OSError, KeyError):  # it has died, which is heard of soon
            self.lines[worker].send(message)

    # --- registration ---

    def _admit(self) -> None:
        """Gives the shared memory to those who have their model; the first one's weights are everybody's.

        Nobody begins before all have come, or have ended: who starts a second later would find an epoch over.
        """
        if self.common is None:
            present = set(range(self.workers)) - self._gone
            if not present or not present <= self._registering.keys():
                return
            first = min(present)
            try:
                self.common = self._founded(self._registering[first])
            except ConfigurationError as error:
                del self._registering[first]
                self._send(first, Refused(str(error)))
                return
        for worker in list(self._registering):
            self._greet(worker, self._registering.pop(worker), self.common)

    def _greet(self, worker: int, register: Register, common: Common) -> None:
        reason = difference(register, common.parameters, common.label)
        if reason is not None:
            self._send(worker, Refused(f"worker {worker} differs from the others: {reason}"))
            return
        self._return(worker)
        self._send(worker, Welcome(len(common.arena.descriptors), common.parcel))
        with suppress(OSError, KeyError):
            _send_descriptors(self.lines[worker], common.arena.descriptors)

    def _founded(self, register: Register) -> Common:
        """The shared memory, made from the first model."""
        try:
            method: Method = pickle.loads(register.method)
        except Exception as error:
            raise ConfigurationError(
                f"`method` cannot be loaded by the launcher ({type(error).__name__}: {error}); define what"
                " it uses in the script itself, or in an installed package"
            ) from error
        arena, parameters, workers = Arena(), register.parameters, self.workers
        parameters.flat, parameters.statistics = arena.place([parameters.flat, parameters.statistics])
        rule = method.rule_for(workers)
        server = Server(parameters, rule, workers, method.rounds, None, backup=method.backup, seed=self.seed)
        board = Board.within(arena, workers, 1)
        share(server, arena, board)
        tally, controls = Tally.within(arena, workers), controlled(server, method, arena)
        gated = workers > 1 and not method.rounds and not method.gate.open
        serves = gated or (workers > 1 and (method.rounds or rule.exclusive))
        mailboxes = Mailbox.within(arena, parameters, workers, method.keeps_pulled) if serves else []
        for worker in self._gone:
            server.retire(worker)
        kit = {
            "server": server,
            "equipment": Equipment(parameters, method, Setup(workers, seed=self.seed), None),
            "mailboxes": mailboxes,
            "gated": gated,
            "tally": tally,
            "board": board,
            "controls": controls,
        }
        parcel = packed(kit, arena)
        return Common(
            parameters, method, register.label, server, mailboxes, gated, tally, board, arena, parcel
        )

    # --- who takes part ---

    def _return(self, worker: int) -> None:
        """The worker takes steps again; it is not behind because it was away."""
        if worker not in self._away:
            return
        others = [self._progress[w] for w in range(self.workers) if w not in self._away]
        self._progress[worker] = max([self._progress[worker], min(others, default=0)])
        self._away.discard(worker)
        if self.common is not None:
            self.common.server.readmit(worker)

    def _retire(self, worker: int) -> None:
        self._away.add(worker)
        if self.common is not None:
            self.common.server.retire(worker)
        self._release()

    # --- updates ---

    def _push(self, worker: int, push: Push) -> None:
        assert self.common is not None
        update = self.common.mailboxes[worker].read(push)
        if not push.now:
            self._return(worker)
        with torch.no_grad():
            receipt = self.common.server.push(update)
        if push.now:
            self._send(worker, Answer(receipt, True))
            self._release()
        elif update.last:
            self._wait(worker, receipt, finished=True)

    def _wait(self, worker: int, receipt: Receipt | None, finished: bool) -> None:
        """The worker waits to start its next step."""
        self._progress[worker] += finished
        self._waiting[worker] = receipt
        self._release()

    def _release(self) -> None:
        """Lets those go who may start."""
        if self.common is None:
            return
        for worker in list(self._waiting):
            if self._may_start(worker, self.common):
                self._send(worker, Answer(self._waiting.pop(worker), True))

    def _may_start(self, worker: int, common: Common) -> bool:
        if common.method.rounds:
            return not common.server.awaits_round(worker)
        if worker in self._away:
            return True
        progress = [NEVER_WAITED_FOR if w in self._away else steps for w, steps in enumerate(self._progress)]
        return common.method.gate.may_start(worker, progress)

    # --- batches ---

    def _take(self, worker: int, shard: int, epoch: int) -> None:
        deal = self._deals.get((shard, epoch))
        if deal is None:
            self._send(worker, Unordered())
            return
        if self.common is not None and self.common.method.rounds and (shard, epoch) not in self._opened:
            self._at_door[worker] = shard, epoch
            self._open_door()
        else:
            self._deal(worker, deal)

    def _open_door(self) -> None:
        """In rounds an epoch begins when all have come, or the first would be rounds of one."""
        absent = set(range(self.workers)) - self._gone - self._at_barrier.keys() - self._at_door.keys()
        if absent:
            return
        comers, self._at_door = self._at_door, {}
        for worker in comers:  # before anybody pushes
            self._return(worker)
        for worker, epoch in sorted(comers.items()):
            self._opened.add(epoch)
            self._deal(worker, self._deals[epoch])

    def _deal(self, worker: int, deal: Deal) -> None:
        dealt = deal.take(worker)
        if dealt is None:
            self._send(worker, Exhausted())
            return
        self._return(worker)
        self._send(worker, Dealt(*dealt))

    def _put_back(self, worker: int, message: Returned) -> None:
        deal = self._deals.get((message.shard, message.epoch))
        if deal is None:
            return
        for number in message.finished:
            deal.finish(worker, number)
        for number in reversed(message.unfinished):
            deal.give_back(worker, number)

    def _stop_at(self, barrier: int, worker: int) -> None:
        if barrier < self._barriers:  # in an earlier life: the others may not come to one for long
            self._send(worker, Passed())
            return
        self._at_barrier[worker] = barrier
        self._retire(worker)
        self._open_barrier()
        self._open_door()

    def _open_barrier(self) -> None:
        if not self._at_barrier or self._at_barrier.keys() | self._gone < set(range(self.workers)):
            return
        self._barriers = min(self._at_barrier.values()) + 1
        for worker in self._at_barrier:
            self._return(worker)
            self._send(worker, Passed())
        self._at_barrier.clear()


def _send_descriptors(line: Line, descriptors: Sequence[int]) -> None:
    with socket.fromfd(line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        reduction.sendfds(connection, list(descriptors))


def controlled(server: Server, method: Method, arena: Arena | None) -> torch.Tensor:
    """The controls of the rule that descends, ``(2,)`` float64: its own, until a scheduler changes them."""
    shape, dtype = (2,), torch.float64
    [controls] = arena.zeros(shape, dtype=dtype) if arena is not None else [torch.zeros(shape, dtype=dtype)]
    controls[0], controls[1] = 1.0, math.nan
    if method.inner is None:  # else the server only averages
        for slot in server.book.slots:
            slot.context.controls = controls
    return controls


def difference(register: Register, parameters: Parameters, label: str) -> str | None:
    """How a worker's model or method differs from the shared ones; None if it does not."""
    if register.label != label:
        return f"`method` is {register.label}, theirs is {label}; give every worker the same"
    own, theirs = register.parameters, parameters
    for kind, mine, others in (
        ("parameter", own.layout.entries, theirs.layout.entries),
        ("buffer", own.statistics_layout.entries, theirs.statistics_layout.entries),
    ):
        found = _first_difference(kind, mine, others)
        if found is not None:
            return f"`model` {found}; every worker must build the same model"
    return None


def _first_difference(kind: str, mine: Sequence[Entry], theirs: Sequence[Entry]) -> str | None:
    for own, other in zip(mine, theirs, strict=False):
        if own.name != other.name:
            return f"has {kind} {own.name!r} where theirs has {other.name!r}"
        if own.shape != other.shape:
            return f"has {kind} {own.name!r} of shape {own.shape}, theirs is {other.shape}"
        if own != other:
            return f"has {kind} {own.name!r} frozen or laid out otherwise than theirs"
    if len(mine) != len(theirs):
        return f"has {len(mine)} {kind}s, theirs has {len(theirs)}"
    return None

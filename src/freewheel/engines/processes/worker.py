"""A worker process: the loop that it runs, and what it does when it, or the main process, goes wrong."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from freewheel.checkpoints.tree import Tree
from freewheel.engines.processes.batches import Batches, batches_for
from freewheel.engines.processes.board import PAUSE, Board
from freewheel.engines.processes.delivery import Delivery, Direct, Served
from freewheel.engines.processes.deposits import deposit, private_buffers, take_back
from freewheel.engines.processes.journal import Journal
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import (
    Deposit,
    Entry,
    Failed,
    Flush,
    Flushed,
    Line,
    Quit,
    Ready,
    Report,
    Show,
    Standing,
    TakeBack,
    Work,
)
from freewheel.engines.processes.parcel import Parcel, unpacked
from freewheel.engines.processes.shared import Arena
from freewheel.engines.worker import Equipment, Life, hopeless, pace
from freewheel.events import NOT_PUSHED
from freewheel.machine import keep_large_blocks
from freewheel.server import Receipt, Server
from freewheel.sources import Lease, Source
from freewheel.tasks import StepReport, Task

REPORT_S = 0.1  # a worker that keeps its page of the book tells of it this often


@dataclass
class Kit:
    """What every worker of a run is given.

    Attributes:
        module: what replicas are made of.
        task: what a step computes.
        equipment: what a worker's side is made of.
        server: over the shared weights and the shared state of the rule.
        source: whose batches workers fetch themselves; None where the main process sends them.
        board: counts that everybody sees.
        journal: of finished steps.
        mailboxes: one a worker; empty where workers apply their updates themselves.
        gated: workers ask before they start a step.
        environment: variables of the main process, which may have changed since the fork server began.
    """

    module: nn.Module
    task: Task[Any]
    equipment: Equipment
    server: Server
    source: Source | None
    board: Board
    journal: Journal
    mailboxes: list[Mailbox]
    gated: bool
    environment: dict[str, str]


@dataclass(frozen=True)
class Place:
    """What one worker is given of the machine.

    Attributes:
        worker: which worker, from 0.
        cores: that it may run on; empty for all.
        incarnation: which life of the worker, from 0.
    """

    worker: int
    cores: frozenset[int] = frozenset()
    incarnation: int = 0


def main(place: Place, connection: Connection, segments: list[int], numbers: int, parcel: Parcel) -> None:
    """What a worker process runs.

    Args:
        place: of this worker.
        connection: to the main process.
        segments: descriptors of the shared memory.
        numbers: descriptor of the queue of batch numbers.
        parcel: where the kit lies.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process decides
        signal.signal(number, signal.SIG_IGN)
    _end_with_the_main_process()
    line, worker = Line(connection), None
    try:
        if place.cores:
            os.sched_setaffinity(0, place.cores)
        arena = Arena.attached(segments)
        worker = _Worker(place, line, Kit(**unpacked(parcel, arena)), numbers)
        arena.close_descriptors()
        worker.serve()
    except BaseException as error:
        with suppress(Exception):  # the main process may be gone
            if worker is not None:
                worker.report()
            line.send(_failed(error, 0 if worker is None else worker.context.sequence))


def _end_with_the_main_process() -> None:
    """However that ends: nobody is left to train for.

    Its end of the pipe is not enough: a process that it has forked (a loader's, a pool's) holds that open.
    """
    parent = parent_process()
    assert parent is not None
    assert parent.pid is not None
    signs = [parent.sentinel]
    if hasattr(os, "pidfd_open"):
        try:
            signs.append(os.pidfd_open(parent.pid))
        except ProcessLookupError:
            os._exit(1)
        except OSError:  # not on this system
            pass

    def watch() -> None:
        wait(signs)
        os._exit(1)

    threading.Thread(target=watch, name="freewheel-watch", daemon=True).start()


def _failed(error: BaseException, sequence: int) -> Failed:
    import cloudpickle  # type: ignore[import-untyped]  # it has no types

    trace = "".join(traceback.format_exception(error))
    try:
        pickled = cloudpickle.dumps(error)
    except Exception:
        pickled = b""
    return Failed(sequence, pickled, type(error).__name__, str(error), trace)


@final
class _Worker:
    def __init__(self, place: Place, line: Line, kit: Kit, numbers: int) -> None:
        number = place.worker
        self.number, self.line, self.kit = number, line, kit
        setup = kit.equipment.setup
        _set_environment(kit.environment)
        torch.set_num_threads(setup.intra_op_threads)
        keep_large_blocks()
        _seed(setup.seed, number, place.incarnation)
        own = kit.equipment.method.exchange is not None  # whose pushes are numbered by themselves
        self.delivery = self._delivery(Life(place.incarnation, 0 if own else kit.board.steps[number]))
        self.batches: Batches = batches_for(kit.source, kit.equipment, number, numbers, line)
        flat = kit.server.parameters.flat.clone() if own else None
        self.context = kit.equipment.context(number, kit.module, flat, self.delivery.send, place.incarnation)
        self.context.sequence = kit.board.steps[number]  # goes on where an earlier life ended
        self.link = None
        if flat is not None:
            local = kit.equipment.local(number, flat, lambda: pace(number, list(kit.board.steps)))
            self.link = kit.equipment.link(
                self.context, local, kit.server.pull, self.delivery.send, self.delivery.send_now
            )
        slot = kit.server.book.slots[number]  # of this life only: the main process has earlier ones
        slot.pushed, slot.released, slot.counts = 0, 0, Counter()
        generator = slot.context.generator
        if generator is not None and (number or place.incarnation):  # those of the others would draw the same
            generator.manual_seed((setup.seed << 20) + (place.incarnation << 40) + number)
        self.state = kit.task.init(self.context)
        self.processor_ns = kit.board.processor_ns[number]  # of earlier lives
        self.hopeless = 0
        self.reported = time.perf_counter()
        self.began = 0.0
        self.known: dict[str, Tensor] = {}  # buffers, as the main process knows them
        self.private = kit.server.parameters.private_buffers(kit.module)

    def _delivery(self, life: Life) -> Delivery:
        kit = self.kit
        if not kit.mailboxes:
            return Direct(kit.server, life)
        return Served(self.line, kit.mailboxes[self.number], kit.gated, life)

    def serve(self) -> None:
        """Does what the main process asks for until it asks to quit."""
        self._publish()
        self.line.send(Ready())
        while not isinstance(order := self.line.receive(), Quit):
            if isinstance(order, Work):
                self._segment(order)
            elif isinstance(order, Flush):
                self._flush(order.final)
            elif isinstance(order, Show):
                self._deposit()
            elif isinstance(order, TakeBack):
                self._take_back(order.state)

    def _segment(self, work: Work) -> None:
        board, batches, delivery = self.kit.board, self.batches, self.delivery
        self.began = work.began
        delivery.open()
        batches.open(work)
        step, go = work.step, delivery.may_begin(work.asks)
        while go:
            if board.sign and not self._heed():
                break
            lease = batches.take(step)
            if lease is None:
                break
            board.batch[self.number] = lease.number
            began = time.perf_counter_ns()
            self._look()
            report = self.kit.task.step(self.context, lease, self.state)
            board.busy_ns[self.number] += time.perf_counter_ns() - began
            batches.done(lease)
            receipt, go = delivery.conclude(self.context)
            self._book(lease, report, receipt)
            step += 1
        self.report()
        self.line.send(Standing(self._changed_buffers()))

    def _heed(self) -> bool:
        """Stops, or waits until a checkpoint is taken; whether to go on."""
        board = self.kit.board
        while board.sign == PAUSE:
            self._deposit()
            answer = self.line.receive()
            if not answer.go:
                return False
        return not board.sign

    def _deposit(self) -> None:
        """Hands over, for a checkpoint, what only this process knows."""
        if self.context.before_deposit is not None:
            self.context.before_deposit()
        buffers = private_buffers(self.context.module, self.private)
        rules = self.kit.server.book.slots[self.number].context
        self.report()
        self.line.send(Deposit(deposit(self.context, self.link, buffers, rules, self.hopeless)))

    def _take_back(self, state: Tree) -> None:
        buffers = private_buffers(self.context.module, self.private)
        rules = self.kit.server.book.slots[self.number].context
        self.hopeless = take_back(state, self.context, self.link, buffers, rules)

    def _look(self) -> None:
        """The weights that the step computes on: a pull, or the live ones with their version."""
        if self.link is not None:
            self.link.begin()
            return
        server = self.kit.server
        self.context.version, self.context.versions = server.version, server.versions()

    def _book(self, lease: Lease, report: StepReport, receipt: Receipt | None) -> None:
        context, now = self.context, time.perf_counter()
        staleness = receipt.staleness if receipt is not None else NOT_PUSHED
        self.kit.journal.write(
            self.number,
            (
                self.number,
                context.sequence,
                lease.number,
                report.samples,
                report.loss,
                staleness,
                now - self.began,
            ),
        )
        context.sequence += 1
        self.kit.board.steps[self.number] = context.sequence
        if now - self.reported > REPORT_S:
            self.report()
        self.hopeless = hopeless(self.number, report.loss, self.hopeless)

    def report(self) -> None:
        """Tells what only this process knows."""
        self._publish()
        self.reported = time.perf_counter()
        if not self.kit.mailboxes:
            self.line.send(Report(self._entry()))

    def _publish(self) -> None:
        self.kit.board.processor_ns[self.number] = self.processor_ns + time.process_time_ns()

    def _entry(self) -> Entry:
        """This worker's page of the book."""
        slot = self.kit.server.book.slots[self.number]
        return Entry(slot.pushed, slot.released, slot.counts)

    def _flush(self, final: bool) -> None:
        """Pushes what is held back; everybody else stands still."""
        assert self.link is not None
        self.delivery.open()
        found = self.link.flush(final)
        self.report()
        self.line.send(Flushed(found))

    def _changed_buffers(self) -> dict[str, Tensor]:
        """Worker 0's speak for all, as on other engines."""
        if self.number:
            return {}
        own = dict(self.context.module.named_buffers())
        changed = {
            name: own[name].clone()
            for name in self.private
            if name in own and (name not in self.known or not torch.equal(self.known[name], own[name]))
        }
        self.known.update(changed)
        return changed


def _set_environment(variables: dict[str, str]) -> None:
    """The main process's, and no others: some may have been deleted since the fork server began."""
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _seed(seed: int, worker: int, incarnation: int) -> None:
    """Seeds the generators of the process: PyTorch's, Python's and NumPy's. A new life draws anew."""
    own = (seed << 20) + (incarnation << 40) + worker
    torch.manual_seed(seed if own == seed << 20 else own)
    random.seed(own)
    np.random.seed((seed + worker + 7919 * incarnation) % 2**32)

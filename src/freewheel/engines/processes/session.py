"""The session of workers in processes: everything that they share lies in shared memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, final

import psutil
from torch import Tensor

from freewheel.checkpoints.tree import Tree
from freewheel.engines.base import intra_op
from freewheel.engines.clock import Clock
from freewheel.engines.processes.board import Board
from freewheel.engines.processes.journal import Journal
from freewheel.engines.processes.shared import Arena
from freewheel.engines.session import Session
from freewheel.events import Monitor
from freewheel.job import Job
from freewheel.server import Server

MEASURE_S = 1.0  # memory is measured at most this often: the system walks the page tables for it
MEASURE_SHARE = 0.005  # of a core's time that this may take


class Left(NamedTuple):
    """Batches that were not used: some numbers, and all from the following one on."""

    numbers: list[int]
    following: int


@final
class ProcessSession(Session):
    """A session without workers of its own: they are elsewhere, and see its weights and its board.

    Attributes:
        arena: the shared memory.
        board: the workers' counts.
        journal: the steps that they have finished.
        memory: of all processes.
        buffers: of worker 0's replica that are no running statistics, as far as they have changed.
        deposits: what each worker held for itself, for a checkpoint, or to go on from one.
        left: batches of the segment under way that were not used when a checkpoint was taken; None where
            workers do not take them from a queue.
    """

    def __init__(self, job: Job, monitors: Sequence[Monitor], engine: str) -> None:
        self.arena = Arena()
        self.board = Board.within(self.arena, job.setup.places, job.setup.shards)
        self.journal = Journal.within(self.arena, job.setup.places, self.board)
        self.memory = Memory()
        self.buffers: dict[str, Tensor] = {}
        self.deposits: dict[int, Tree] = {}
        self.left: Left | None = None
        self._closed = False
        super().__init__(job, monitors, engine, Clock(partial(_processor_seconds, self.board)), self.memory)

    def _server(self, kind: type[Server] = Server) -> Server:
        """The server, its weights, its counts and the state of its rule in shared memory."""
        parameters = self.parameters
        parameters.flat, parameters.statistics = self.arena.place([parameters.flat, parameters.statistics])
        server = super()._server(kind)
        share(server, self.arena, self.board)
        return server

    def worker_states(self) -> list[Tree]:
        """What the workers have deposited."""
        return [self.deposits.get(worker) for worker in range(self.job.setup.workers)]

    def restore_workers(self, states: Sequence[Tree], start: int) -> None:
        """Keeps what the workers are to be told when they are there."""
        self.deposits = {worker: state for worker, state in enumerate(states) if state is not None}
        for worker, state in enumerate(states):
            self.board.steps[worker] = start if state is None else state["context"]["sequence"]

    def source_state(self) -> Tree:
        """Where the source stands; the workers fetch the batches of some themselves."""
        if self.left is None:
            return super().source_state()
        return {"next": self.left.following, "returned": list(self.left.numbers)}

    def settle(self, final: bool) -> bool:
        """Has the workers push what they hold back; applied with as many threads as on a worker."""
        with intra_op(self.job.setup.intra_op_threads):
            return super().settle(final)

    def _copy_counters(self) -> None:
        """Buffers that are no running statistics, such as BatchNorm's batch count, are worker 0's."""
        buffers = dict(self.job.module.named_buffers())
        for name, value in self.buffers.items():
            if buffers[name].shape == value.shape:
                buffers[name].copy_(value)

    def close(self) -> None:
        """Gives the user's module tensors of its own again, and lets go of the shared memory; once."""
        if self._closed:
            return
        self._closed = True
        super().close()
        self.server.dissolve()
        self.arena.close()


def share(server: Server, arena: Arena, board: Board) -> None:
    """Puts the state of a server's rule and its counts where other processes see them.

    Args:
        server: whose weights lie in the arena already; nobody has pushed.
        arena: the shared memory.
        board: the workers' counts.
    """
    leaves = [leaf for state in server.states() for leaf in _leaves(state)]
    # One without elements stays where it is: it is there to grow, which shared memory cannot.
    tensors = [
        (leaf, i)
        for leaf in leaves
        for i, value in enumerate(leaf)
        if isinstance(value, Tensor) and value.numel()
    ]
    placed = arena.place([leaf[i] for leaf, i in tensors])
    for (leaf, i), tensor in zip(tensors, placed, strict=True):
        leaf[i] = tensor
    server.book.versions, server.book.samples_of = board.versions, board.samples
    server.book.racing = True
    for shard in server.shards if len(server.shards) > 1 else ():
        shard.applied = board.applied(shard.index)


@final
class Memory:
    """Bytes that this process and its workers hold; what several hold together counts once.

    The whole is measured seldom; what has been added since to the memory that is a process's own, and costs
    little to ask for, is counted at every call.
    """

    def __init__(self) -> None:
        self._processes = [psutil.Process()]
        self._due = 0.0
        self._bytes = self._own = 0

    def __call__(self) -> int:
        """The sum now."""
        if time.perf_counter() >= self._due:
            self._measure()
        return max(0, self._bytes + sum(map(_own, self._processes)) - self._own)

    def _measure(self) -> None:
        began = time.thread_time()
        self._bytes = sum(map(_proportional, self._processes))
        self._own = sum(map(_own, self._processes))
        took = time.thread_time() - began
        self._due = time.perf_counter() + max(MEASURE_S, took / MEASURE_SHARE)

    def watch(self, pids: Sequence[int]) -> None:
        """Counts these processes, too."""
        self._processes = [psutil.Process()]
        for pid in pids:
            try:
                self._processes.append(psutil.Process(pid))
            except psutil.Error:
                continue
        self._due = 0.0


def _processor_seconds(board: Board) -> float:
    """Processor time of this process and of the workers, as they have last told."""
    return time.process_time() + sum(board.processor_ns) / 1e9


def _proportional(process: psutil.Process) -> int:
    """Memory of a process, with its share of what others map, too; its own where shares are unknown."""
    try:
        full = process.memory_full_info()
    except psutil.Error:
        return 0
    return int(getattr(full, "pss", 0) or full.uss)


def _own(process: psutil.Process) -> int:
    """Memory of a process without files and shared memory that it maps; nothing if it has ended."""
    try:
        info = process.memory_info()
    except psutil.Error:
        return 0
    return int(info.rss - getattr(info, "shared", 0))


def _leaves(state: dict[str, Any]) -> list[list[Any]]:
    """All lists of tensors in a rule's state."""
    found: list[list[Any]] = []
    for value in state.values():
        found.extend(_leaves(value) if isinstance(value, dict) else [value])
    return found

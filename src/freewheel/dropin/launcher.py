"""Starts the processes of a script, restarts those that die, passes on signals, and ends them all."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, BinaryIO, NamedTuple, final

from freewheel.dropin.hub import Hub
from freewheel.dropin.membership import Membership
from freewheel.dropin.output import Prefixed
from freewheel.dropin.tally import Total
from freewheel.engines.processes.messages import Line
from freewheel.engines.supervisor import Watch

POLL_S = 0.2
PATIENCE_S = 5.0  # for workers that are to end, before they are killed
GRACE_S = 30.0  # for those that the user has told to, of which one may be saving: as long as torchrun's
MESSAGE_S = 10  # a message that was begun must be whole by then
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


class Plan(NamedTuple):
    """What to run.

    Attributes:
        command: of every worker: the interpreter, the script, its arguments.
        workers: how many.
        method: name, for scripts that leave it to the launcher.
        settings: of that method.
        max_restarts: deaths in the whole run after which another ends it.
        pin: bind each worker to cores of its own.
        threads: intra-op threads of each; None leaves OMP_NUM_THREADS as it is, or makes it 1.
        step_timeout: seconds without a sign of life after which a worker hangs; None: nobody does.
    """

    command: Sequence[str]
    workers: int
    method: str | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012  # never changed
    max_restarts: int = 3
    pin: bool = False
    threads: int | None = None
    step_timeout: float | None = None


class Outcome(NamedTuple):
    """What came of it.

    Attributes:
        code: exit code: 0, that of the first worker that failed, or 128 and the signal that ended it.
        totals: what each worker has done; empty if no model was shared.
        restarts: of each worker.
        reason: why it failed; empty if it did not.
    """

    code: int
    totals: list[Total]
    restarts: list[int]
    reason: str


@dataclass
class Member:
    """A worker's process, in its present life."""

    rank: int
    process: subprocess.Popen[bytes]
    streams: dict[BinaryIO, Prefixed]
    steps: int = 0  # it had taken in all when this life began
    silent: float | None = None  # for so many seconds, for which it was killed
    over: bool = False


@final
class Launcher:
    """One run of a script.

    Args:
        plan: what to run.
        out: where standard output goes.
        err: where standard error goes.
        colour: colour the ranks, for these two.
        say: tells of deaths and restarts.
    """

    def __init__(self, plan: Plan, out: BinaryIO, err: BinaryIO, colour: tuple[bool, bool], say: Any) -> None:
        self.plan = plan
        self._targets = (out, err)
        self._colour = colour
        self._say = say
        self._hub = Hub(plan.workers)
        self._selector = selectors.DefaultSelector()
        self._members: dict[int, Member] = {}
        self._restarts = [0] * plan.workers
        self._code = 0
        self._reason = ""
        self._signals: list[int] = []  # not passed on yet
        self._ending: float | None = None  # when the patience with workers that are to end is over
        self._told = False  # a signal was passed on: nobody is restarted
        self._watch: Watch | None = None

    def run(self) -> Outcome:
        """Runs the script to its end, whatever happens; afterwards no process is left."""
        try:
            with self._listening():
                for rank in range(self.plan.workers):
                    self._start(rank)
                while self._members:
                    self._turn()
            totals = [] if self._hub.common is None else self._totals()
            return Outcome(self._code, totals, self._restarts, self._reason)
        finally:
            for member in self._members.values():
                _kill(member.process)
                member.process.wait()
            self._hub.close()
            self._selector.close()

    def _totals(self) -> list[Total]:
        assert self._hub.common is not None
        return [self._hub.common.tally.total(rank) for rank in range(self.plan.workers)]

    # --- starting ---

    def _start(self, rank: int) -> None:
        here, there = socket.socketpair()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", MESSAGE_S, 0))
        with there:
            process = subprocess.Popen(
                self.plan.command,
                env=self._environment(rank, there.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[there.fileno()],
                start_new_session=True,  # the terminal's Ctrl-C comes once, from here
                preexec_fn=_Child(os.getpid(), self._cores(rank)),  # noqa: PLW1509  # the launcher has one
            )
        assert process.stdout is not None
        assert process.stderr is not None
        pipes: list[Any] = [process.stdout, process.stderr]
        streams = {
            pipe: Prefixed(target, rank, colour)
            for pipe, target, colour in zip(pipes, self._targets, self._colour, strict=True)
        }
        line = Line(Connection(here.detach()))
        member = Member(rank, process, streams, self._steps(rank))
        self._members[rank] = member
        self._hub.welcome(rank, line)
        self._selector.register(line, selectors.EVENT_READ, (member, None))
        for pipe in pipes:
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, (member, pipe))

    def _environment(self, rank: int, descriptor: int) -> dict[str, str]:
        from freewheel import __version__

        plan = self.plan
        place = Membership(
            rank, plan.workers, self._restarts[rank], descriptor, __version__, plan.method, plan.settings
        )
        variables = {**os.environ, **place.variables(), "PYTHONUNBUFFERED": "1"}
        if plan.threads is not None:
            variables["OMP_NUM_THREADS"] = str(plan.threads)
        variables.setdefault("OMP_NUM_THREADS", "1")
        return variables

    def _cores(self, rank: int) -> frozenset[int]:
        if not self.plan.pin:
            return frozenset()
        cores, each = sorted(os.sched_getaffinity(0)), self.plan.threads or 1
        return frozenset(cores[(rank * each + i) % len(cores)] for i in range(each))

    def _steps(self, rank: int) -> int:
        return 0 if self._hub.common is None else self._totals()[rank].steps

    # --- listening ---

    def _turn(self) -> None:
        """Handles what has come, and looks who has ended."""
        for key, _ in self._selector.select(POLL_S):
            member, pipe = key.data
            if member.over:
                continue
            if pipe is not None:
                self._read(member, pipe)
                continue
            try:
                message = self._hub.lines[member.rank].receive()
            except BlockingIOError:  # it stands still in the middle of a message
                _kill(member.process)
            except (EOFError, OSError):
                self._selector.unregister(key.fileobj)  # it has closed its end; its exit code tells why
            else:
                self._hub.serve(member.rank, message)
        self._pass_on()
        self._look()
        for member in list(self._members.values()):
            if member.process.poll() is not None:
                self._ended(member)
        if self._ending is not None and time.monotonic() > self._ending:
            for member in self._members.values():
                _kill(member.process)

    def _look(self) -> None:
        """Kills who hangs: whoever is to be heard of, and is not."""
        common, timeout = self._hub.common, self.plan.step_timeout
        if common is None or timeout is None:
            return
        if self._watch is None:
            self._watch = Watch(common.board, self.plan.workers, timeout)
        self._watch.begin()
        for rank, member in self._members.items():
            if not self._hub.is_busy(rank):
                self._watch.rest(rank)
            elif (silent := self._watch.look(rank)) is not None:
                member.silent = silent
                _kill(member.process)

    def _read(self, member: Member, pipe: BinaryIO) -> bool:
        """Passes on what a worker has written; whether there was anything."""
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            with suppress(KeyError):
                self._selector.unregister(pipe)
            return False
        member.streams[pipe].feed(data)
        return True

    def _ended(self, member: Member) -> None:
        """A worker's process has ended: everything of it is collected, and it is started again if it may."""
        rank, code = member.rank, member.process.returncode
        _kill(member.process)  # what it has started itself
        member.over = True
        for pipe, stream in member.streams.items():
            while self._read(member, pipe):
                pass
            stream.end()
            with suppress(KeyError):
                self._selector.unregister(pipe)
            pipe.close()
        with suppress(KeyError):
            self._selector.unregister(self._hub.lines[rank])
        del self._members[rank]
        how = worded(code, member.silent)
        again = code != 0 and self._may_restart(member)
        self._hub.bury(rank, for_good=not again)
        if again:
            self._restarts[rank] += 1
            left = self.plan.max_restarts - sum(self._restarts)
            self._say(f"worker {rank} {how}; started again ({left} restarts left)")
            self._start(rank)
        elif code != 0:
            self._fail(code, f"worker {rank} {how}")

    def _may_restart(self, member: Member) -> bool:
        """A death is worth another try within the budget, and where the life that ended took a step."""
        if self._told or self._ending is not None or sum(self._restarts) >= self.plan.max_restarts:
            return False
        return self._steps(member.rank) > member.steps

    def _fail(self, code: int, reason: str) -> None:
        """The first failure is the run's: the others are ended."""
        if self._code:
            return
        self._code = code if code > 0 else 128 - code
        self._reason = reason
        if not self._members or self._ending is not None:
            return
        if self._told:
            self._ending = time.monotonic() + GRACE_S
        else:
            self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        self._ending = time.monotonic() + PATIENCE_S
        for member in self._members.values():
            _send(member.process, number)

    # --- signals ---

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Signals are noted, and wake the loop."""
        woken, wakes = socket.socketpair()
        woken.setblocking(False)
        wakes.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ, (_Waker(woken), woken))
        # One that is ignored stays so: nohup.
        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._note) for number in heeded}
        children = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        descriptor = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGCHLD, children)
            for number, handler in before.items():
                signal.signal(number, handler)
            woken.close()
            wakes.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def _pass_on(self) -> None:
        """Every worker gets the signals that came; a second Ctrl-C ends those that did not heed the first."""
        signals, self._signals = self._signals, []
        for number in signals:
            if number == signal.SIGINT and self._told:
                self._ending = time.monotonic()
            self._told = True
            for member in self._members.values():
                _send(member.process, number)


@dataclass
class _Waker:
    """Stands in a member's place for the socket that signals write to."""

    socket: socket.socket
    over: bool = field(default=False)

    @property
    def streams(self) -> dict[Any, _Waker]:
        return {self.socket: self}

    def feed(self, data: bytes) -> None:
        """Nothing: that the loop was woken is all."""


@dataclass(frozen=True)
class _Child:
    """What a process does before it becomes the script: it will not outlive the launcher.

    Attributes:
        parent: process id of the launcher.
        cores: that it may run on; empty for all.
    """

    parent: int
    cores: frozenset[int]

    def __call__(self) -> None:
        """Runs between fork and exec."""
        if sys.platform == "linux":
            _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.parent:
                os._exit(1)
        if self.cores:
            os.sched_setaffinity(0, self.cores)


_LIBC = ctypes.CDLL(None, use_errno=True)


def worded(code: int, silent: float | None = None) -> str:
    """How a process has ended.

    Args:
        code: minus the signal that has killed it, if one has.
        silent: seconds without a sign of life for which it was killed.

    Example:
        >>> worded(3), worded(-9)
        ('has ended with exit code 3', 'was killed by SIGKILL')
    """
    if code < 0 and silent is not None:
        return f"hung (no sign of life for {silent:.0f} s) and was killed"
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all of its session that are in its group, such as the workers of a DataLoader."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

"""A simulated run under way: who begins, what travels, what is booked, in the order of a virtual clock."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from typing import NamedTuple, final

import torch

from freewheel.engines import plan
from freewheel.engines.clock import VirtualClock
from freewheel.engines.fleet import Fleet, Member
from freewheel.engines.session import Session
from freewheel.engines.turns import Turns
from freewheel.engines.wire import Wire
from freewheel.errors import FreewheelError, TrainingError, WorkerError
from freewheel.link import received, stamped
from freewheel.server import Receipt
from freewheel.simulation import Agenda, Die, FaultPlan, Hang, Network, ServerCost, StepTimes
from freewheel.simulation.rhythm import Rhythm
from freewheel.sources import Lease
from freewheel.tasks import StepReport
from freewheel.update import Update

TICKS = 200  # how often a run tells how it stands


class World(NamedTuple):
    """What a simulation takes; see :class:`freewheel.Simulated`."""

    times: StepTimes
    network: Network
    server: ServerCost
    faults: FaultPlan
    turnaround: float


class Step(NamedTuple):
    """A step that was computed, and is done when its time has come."""

    member: Member
    life: int
    lease: Lease
    report: StepReport


class _End(Exception):  # noqa: N818  # no error: the run has reached its target
    """The target is reached: nothing that lies on the agenda happens any more."""


@final
class Simulation:
    """One simulated run.

    Args:
        session: the run's record.
        agenda: what happens when.
        clock: the agenda's, as the session reads it.
        world: how long things take, and what goes wrong.
    """

    def __init__(self, session: Session, agenda: Agenda, clock: VirtualClock, world: World) -> None:
        job = session.job
        seed, workers = job.setup.seed, job.setup.workers
        self.session, self.agenda, self.clock = session, agenda, clock
        self.server, self.task, self.method = session.server, job.task, job.method
        self.faults = world.faults
        self.wire = Wire(agenda, self.server, world.network, world.server, self.faults, seed)
        self.fleet = Fleet(session)
        live = self.method.exchange is None
        rhythms = [
            Rhythm(world.times.sampler(seed, number), world.turnaround, seed, number, live)
            for number in range(workers)
        ]
        self.members = [self.fleet.member(number, rhythm) for number, rhythm in enumerate(rhythms)]
        self.turns = Turns(session)
        # Leases of a worker that does not come back would stay undone if they were its own.
        self.fixed = self.method.leases == "fixed" and not any(isinstance(f, Die) for f in self.faults.faults)
        self.booked = 0
        self.over_at = 0.0
        self.total = plan.total_leases(job)
        self.every = plan.leases_between_evaluations(job)
        self.tick_every = max(1, (self.total or 100 * self.every) // TICKS)
        self.evaluated_at = 0

    # --- the run ---

    def run(self) -> None:
        """Follows the agenda to the end of the run; Ctrl-C ends it cleanly."""
        session = self.session
        try:
            session.record.announce()
            for member in self.members:
                member.context.deliver = partial(self._collect, member)
                session.states[member.number] = self.task.init(member.context)
            session.job.source.open(0, self.total)
            for _ in range(1 + self.method.in_flight):
                for member in self.members:
                    self._begin(member)
            self._follow()
            self._end()
        except KeyboardInterrupt:
            session.reason = "interrupted"
            with suppress(KeyboardInterrupt):
                self._settle(final=True)
                session.evaluate()
                session.record.emit(self.wire.traffic([member.busy_s for member in self.members]))
        except BaseException as error:
            session.fail(error)
            raise
        finally:
            session.close()

    def _follow(self) -> None:
        limit = self.session.job.stop.max_seconds
        with suppress(_End):
            self.agenda.run(math.inf if limit is None else limit)
            if len(self.agenda) and self.booked != self.total:
                self.session.reason = "max_seconds"

    def _end(self) -> None:
        session = self.session
        if session.reason is None:
            self._check_complete()
            session.reason = plan.reason(session.job)
            self.clock.end(self.over_at)
        if session.reason != "target":
            again = self._settle(final=True)
            session.evaluate(again=again)
        session.record.drain()
        session.record.emit(self.wire.traffic([member.busy_s for member in self.members]))

    def _check_complete(self) -> None:
        if self.total is None or self.booked < self.total:
            dead, waiting = sum(member.dead for member in self.members), len(self.turns.waiting)
            planned = "" if self.total is None else f" of {self.total}"
            raise TrainingError(
                f"the simulated run came to a stand at {self.over_at:g} s after {self.booked}{planned} steps:"
                f" of {len(self.members)} workers {dead} are dead and {waiting} wait; let some come back:"
                " die(..., back_after_s=...)"
            )

    # --- a step ---

    def _begin(self, member: Member) -> None:
        """Begins a step: takes a lease and asks for weights, unless the worker has to wait."""
        if member.dead:  # with pushes in flight it may have died in one step when it was to begin another
            return
        if member.asking:
            member.owed += 1
            return
        if not self.turns.may_start(member):
            return
        lease = self._lease(member)
        if lease is None:
            self._retire(member)
            return
        fault = self.faults.step(member.number, member.begun)
        if isinstance(fault, Die):
            self._die(member, lease, fault)
            return
        hang = fault.for_s if isinstance(fault, Hang) else 0.0
        member.begun += 1
        exchange = member.exchange
        if exchange is not None and not exchange.wants_pull():
            self._compute(member, lease, hang, self.agenda.now)
            return
        member.asking = True
        served = partial(self._served, member, lease, hang)
        # The request of a worker that waits for a round has come with its push, and waits at the server.
        asked = self.method.rounds and member.begun > 1
        self.wire.pull(member.number, self._target(member), served, asked)

    def _target(self, member: Member) -> torch.Tensor | None:
        """Where a pull goes; None where the step will be computed on the live weights at once."""
        if member.weights is None:
            return None
        if member.exchange is None or member.exchange.target is self.session.parameters.flat:
            return member.weights.flat
        return member.exchange.target

    def _lease(self, member: Member) -> Lease | None:
        source, context = self.session.job.source, member.context
        try:
            if self.fixed:
                return source.take_number(member.begun * len(self.members) + member.number)
            return source.take()
        except FreewheelError:
            raise
        except Exception as error:
            raise WorkerError(member.number, context.sequence, error) from error

    def _served(
        self, member: Member, lease: Lease, hang: float, versions: tuple[int, ...], arrival: float
    ) -> None:
        """The pull was served: whatever the step computes is decided now."""
        member.asking = False
        context = member.context
        received(versions, context)
        early = member.exchange.arrived() if member.exchange is not None else None
        if early is not None:
            early = self._prepared(member, stamped(early, context))
            if early.buffers is not None:
                early.buffers = member.statistics.clone()
            self._at(arrival, partial(self.wire.push, early, partial(self._exchanged, member)))
        self._compute(member, lease, hang, arrival)
        if member.owed:
            member.owed -= 1
            self._begin(member)

    def _exchanged(self, member: Member, receipt: Receipt | None) -> None:
        member.context.receipt = receipt

    def _at(self, time: float, action: partial[None]) -> None:
        if time <= self.agenda.now:
            action()
        else:
            self.agenda.at(time, action)

    def _compute(self, member: Member, lease: Lease, hang: float, ready: float) -> None:
        start = max(ready, member.ready_at)
        self.fleet.lend(member)
        context = member.context
        context.sequence = member.begun - 1
        try:
            report = self.task.step(context, lease, self.session.states[member.number])
        except FreewheelError:
            raise
        except Exception as error:
            raise WorkerError(member.number, context.sequence, error) from error
        updates, member.outbox = member.outbox, []
        self.fleet.take_back(member, updates)
        seconds = member.rhythm.computing(start) + hang
        member.ready_at = start + seconds
        member.busy_s += seconds
        step = Step(member, member.life, lease, report)
        self.agenda.at(member.ready_at, partial(self._finish, step, updates))

    def _collect(self, member: Member, update: Update) -> Receipt | None:
        """Takes the gradient of the step under way."""
        kept = member.context.receipt  # of a push before the step, should there have been one
        if member.exchange is not None:
            offered = member.exchange.offer(update)
            if offered is None:
                return kept
            update = self._prepared(member, offered)
        update.incarnation = member.life
        member.outbox.append(update)
        return kept

    def _prepared(self, member: Member, update: Update) -> Update:
        update.sequence, member.sent = member.sent, member.sent + 1
        update.incarnation = member.life
        return update if member.outgoing is None else member.outgoing.apply(update)

    def _finish(self, step: Step, updates: list[Update]) -> None:
        """The worker has computed the step; it pushes, and goes on."""
        member = step.member
        number, member.finished = member.finished, member.finished + 1
        if not updates:
            receipt, member.context.receipt = member.context.receipt, None
            self._book(step, number, receipt)
        for update in updates:
            self.wire.push(update, partial(self._arrived, step, number))
        if not (updates and self.method.rounds):
            self._go_on(step)

    def _arrived(self, step: Step, number: int, receipt: Receipt | None) -> None:
        """The server has taken the push; in rounds its worker waits until then."""
        self._book(step, number, receipt)
        if self.method.rounds:
            self._go_on(step)

    def _go_on(self, step: Step) -> None:
        """The worker's next step, unless it has died since; what comes back begins by itself."""
        member = step.member
        if member.dead or member.life != step.life:
            return
        turnaround = member.rhythm.turnaround(self.agenda.now)
        if not turnaround:
            self._begin(member)
            return
        member.busy_s += turnaround
        self.agenda.at(self.agenda.now + turnaround, partial(self._begin_again, step))

    def _begin_again(self, step: Step) -> None:
        """After the turnaround, unless the worker has died and come back meanwhile."""
        if step.member.life == step.life:
            self._begin(step.member)

    def _book(self, step: Step, number: int, receipt: Receipt | None) -> None:
        member, lease, report = step.member, step.lease, step.report
        session = self.session
        member.context.sequence = number
        session.end_step(member.context, lease, report, receipt)
        self.turns.seen(member)
        self.booked += 1
        self.over_at = max(self.over_at, self.agenda.now)
        if self.booked % self.tick_every == 0:
            session.record.tick(force=True)
        if self._is_due():
            self.evaluated_at = self.booked
            self._settle(final=False)
            session.evaluate()
            if session.reason is not None:
                raise _End
        self._wake()

    def _is_due(self) -> bool:
        """Whether to evaluate now; a short rest is not worth an evaluation of its own."""
        if self.booked - self.evaluated_at < self.every:
            return False
        return self.total is None or self.total - self.booked >= self.every / 2

    def _wake(self) -> None:
        """Lets those begin who waited for what has just happened."""
        for member in self.turns.freed():
            self._begin(member)

    # --- coming and going ---

    def _retire(self, member: Member) -> None:
        self.turns.leave(member)
        self._wake()

    def _die(self, member: Member, lease: Lease, fault: Die) -> None:
        """The lease goes back to the queue, for whoever is ready next; steps before it are computed."""
        member.dead, member.owed = True, 0
        self.turns.forget(member)
        self.session.job.source.give_back(lease)
        self.turns.leave(member)
        if fault.back_after_s is not None:
            died_at = max(self.agenda.now, member.ready_at)
            self.agenda.at(died_at + fault.back_after_s, partial(self._return, member))
        self._wake()

    def _return(self, member: Member) -> None:
        """Begins anew with nothing but what it pulls."""
        member.dead = False
        member.life += 1
        member.sent = 0
        member.rhythm.begin_anew()
        member.weights, member.exchange, member.outgoing = self.fleet.equipment(member.number)
        member.statistics.copy_(self.session.parameters.statistics)
        self._resume(member)

    def _resume(self, member: Member) -> None:
        self.turns.join(member)
        for _ in range(1 + self.method.in_flight):
            self._begin(member)

    def _settle(self, final: bool) -> bool:
        """Has the workers push what they hold back, at once; whether there was anything."""
        found = False
        exchanges = [(member, member.exchange) for member in self.members if member.exchange is not None]
        if not any(final or exchange.settles for _, exchange in exchanges):
            return False
        self.server.readmit()
        for member, exchange in exchanges:
            # What a dead worker held back is lost with it.
            rest = None if member.dead else exchange.flush(partial(self._pull_now, member))
            if rest is None:
                self.server.retire(member.number)
                continue
            found = True
            if rest.buffers is not None:
                rest.buffers = member.statistics  # the replica holds those of whoever computed last
            update = self._prepared(member, rest)
            self.wire.count(update)
            self.server.push(update)
        return found

    def _pull_now(self, member: Member, target: torch.Tensor) -> None:
        received(self.server.pull(target), member.context)

"""The events of a run against each other: single steps, totals and the book must tell the same story."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from freewheel.events import NOT_PUSHED, Dropped, Evaluated, Event, RunFinished, RunStarted, Steps, Tick

COMPLETE = ("epochs", "max_samples")
"""The reasons of a run that computed all that was planned; others leave batches that nobody has taken."""


class Computed(NamedTuple):
    """One step, as a worker reported it."""

    worker: int
    sequence: int
    lease: int
    samples: int
    staleness: int


@dataclass(frozen=True)
class Log:
    """The events of one run, sorted out."""

    events: Sequence[Event]

    @cached_property
    def started(self) -> RunStarted | None:
        """How the run began."""
        return next((event for event in self.events if isinstance(event, RunStarted)), None)

    @cached_property
    def finished(self) -> RunFinished | None:
        """The totals."""
        return next((event for event in self.events if isinstance(event, RunFinished)), None)

    @cached_property
    def steps(self) -> list[Computed]:
        """Every step, in the order in which they were collected."""
        found = []
        for event in self.events:
            if isinstance(event, Steps):
                columns = (event.worker, event.sequence, event.lease, event.samples, event.staleness)
                found += [Computed(*values) for values in zip(*columns, strict=True)]
        return found

    @property
    def complete(self) -> bool:
        """Whether the run computed everything that was planned."""
        return self.finished is not None and self.finished.reason in COMPLETE


def violations(log: Log) -> Iterator[str]:
    """What does not fit, in plain words."""
    yield from (
        leases(step.lease for step in log.steps)
        if log.complete
        else repeated(step.lease for step in log.steps)
    )
    yield from _sequences(log)
    yield from _course(log)
    finished = log.finished
    if finished is None:
        yield "the events end without RunFinished: lines are missing, or the run was killed"
        return
    yield from book(finished.ledger)
    yield from _totals(log.steps, finished)
    yield from _staleness(log.steps, finished)
    yield from _drops(log, finished)


def leases(numbers: Iterable[int]) -> Iterator[str]:
    """Every batch from the first to the last was computed once."""
    counts = Counter(numbers)
    yield from repeated(counts.elements())
    missing = sorted(set(range(max(counts, default=-1) + 1)) - counts.keys())
    if missing:
        yield f"nobody computed {listed('batch', missing)}, though the run went on beyond"


def repeated(numbers: Iterable[int]) -> Iterator[str]:
    """No batch was computed twice."""
    twice = sorted(number for number, count in Counter(numbers).items() if count > 1)
    if twice:
        yield f"{listed('batch', twice)} computed more than once"


def book(ledger: dict[str, object]) -> Iterator[str]:
    """Every push was applied, absorbed, dropped, or is pending."""
    pushed, applied, absorbed, pending = (
        _number(ledger.get(name)) for name in ("pushed", "applied", "absorbed", "pending")
    )
    drops = ledger.get("dropped")
    dropped = sum(map(_number, drops.values())) if isinstance(drops, dict) else 0
    if pushed != applied + absorbed + pending + dropped:
        yield (
            f"the book does not add up: {pushed} pushed, but {applied} applied + {absorbed} absorbed +"
            f" {pending} pending + {dropped} dropped = {applied + absorbed + pending + dropped}"
        )
    if min(pushed, applied, absorbed, pending, dropped) < 0:
        yield f"the book has a negative count: {ledger}"


def _sequences(log: Log) -> Iterator[str]:
    """The steps of a worker are numbered from 0, each once."""
    by_worker: dict[int, Counter[int]] = {}
    for step in log.steps:
        by_worker.setdefault(step.worker, Counter())[step.sequence] += 1
    for worker, counts in sorted(by_worker.items()):
        twice = sorted(number for number, count in counts.items() if count > 1)
        if twice:
            yield f"worker {worker} reported {listed('step', twice)} more than once"
        missing = sorted(set(range(max(counts) + 1)) - counts.keys())
        if missing and log.complete:
            yield f"worker {worker} never reported {listed('step', missing)}"


def _totals(steps: list[Computed], finished: RunFinished) -> Iterator[str]:
    workers = len(finished.worker_steps)
    counted, samples = Counter(step.worker for step in steps), Counter[int]()
    for step in steps:
        samples[step.worker] += step.samples
    for worker in sorted({*range(workers), *counted}):
        for name, found, total in (
            ("steps", counted[worker], finished.worker_steps),
            ("examples", samples[worker], finished.worker_samples),
        ):
            told = total[worker] if worker < workers else 0
            if found != told:
                yield f"worker {worker} computed {found} {name} by its steps, but {told} by the totals"
    for name, parts, whole in (
        ("steps", finished.worker_steps, finished.steps),
        ("samples", finished.worker_samples, finished.samples),
    ):
        if sum(parts) != whole:
            yield f"the workers' {name} add up to {sum(parts)}, but the totals say {whole}"


def _staleness(steps: list[Computed], finished: RunFinished) -> Iterator[str]:
    """Every receipt that a step got is of a push that is in the book."""
    found = Counter(step.staleness for step in steps if step.staleness != NOT_PUSHED)
    if found != Counter(finished.staleness):
        yield (
            f"the steps' staleness adds up to {dict(sorted(found.items()))}, but the totals say"
            f" {dict(sorted(finished.staleness.items()))}"
        )
    pushes = _number(finished.ledger.get("pushed")) + _number(finished.ledger.get("duplicates"))
    receipts = sum(found.values())
    if receipts > pushes:
        yield f"{receipts} steps were told what became of their push, but the book has {pushes} pushes"


def _drops(log: Log, finished: RunFinished) -> Iterator[str]:
    last: dict[tuple[int, str], int] = {}
    for event in log.events:
        if isinstance(event, Dropped):
            before = last.get((event.worker, event.reason), 0)
            if event.count < before:
                yield (
                    f"worker {event.worker} had {before} updates dropped ({event.reason}), and later only"
                    f" {event.count}"
                )
            last[event.worker, event.reason] = event.count
    if finished.reason == "error":
        return  # the last drops are not told
    found: Counter[str] = Counter()
    for (_, reason), count in last.items():
        found[reason] += count
    drops = finished.ledger.get("dropped", {})
    for reason in sorted({*found, *drops}):
        if found[reason] != drops.get(reason, 0):
            yield (
                f"{found[reason]} updates were told to be dropped ({reason}), but the book has"
                f" {drops.get(reason, 0)}"
            )


def _course(log: Log) -> Iterator[str]:
    """Counts of examples only grow, and end at the totals."""
    total = log.finished.samples if log.finished is not None else None
    seen = 0
    for event in log.events:
        if not isinstance(event, Tick | Evaluated):
            continue
        samples = sum(event.samples) if isinstance(event, Tick) else event.samples
        if samples < seen or (total is not None and samples > total):
            yield f"at {event.seconds:.3f} s there were {samples} examples, after {seen}, of {total} in all"
        seen = max(seen, samples)


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def listed(what: str, numbers: Sequence[int], most: int = 5) -> str:
    """Some of the numbers, behind what they count."""
    names = ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")
    if len(numbers) == 1:
        return f"{what} {names}"
    return f"{len(numbers)} {what}{'es' if what.endswith(('ch', 'sh')) else 's'} ({names})"

"""The operations of a recording against each other, against the book and against the reported steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from freewheel.auditing.of_events import COMPLETE, Computed, book, leases, listed, repeated
from freewheel.recording.log import Kind, Operation, Recording


def violations(recording: Recording, reported: list[Computed] | None = None) -> Iterator[str]:
    """What does not fit, in plain words.

    Args:
        recording: of the run.
        reported: the steps among its events; None if there are no events.
    """
    operations = list(recording)
    finished = recording.header["finished"]
    numbers = [operation.number for operation in operations if operation.kind == Kind.STEP]
    complete = finished is not None and finished["reason"] in COMPLETE
    yield from leases(numbers) if complete else repeated(numbers)
    yield from _versions(operations)
    yield from _pushes(operations)
    yield from _examples(operations)
    if finished is None:
        yield "the recording has no totals: the run was killed"
    else:
        yield from book(finished["ledger"])
        yield from _ledger(operations, finished["ledger"])
    if reported is not None:
        yield from _reported(
            operations, reported, certain=finished is not None and finished["reason"] != "error"
        )


def _versions(operations: list[Operation]) -> Iterator[str]:
    """Every applied update makes the weights one version older, and nothing else does."""
    before = 0
    for place, operation in enumerate(operations):
        grown, before = operation.version - before, operation.version
        allowed = _growth(operation)
        if grown not in allowed:
            yield (
                f"operation {place}, {_described(operation)}, counts {grown} updates where"
                f" {' or '.join(map(str, allowed))} can be: one was lost, or applied twice"
            )


def _growth(operation: Operation) -> tuple[int, ...]:
    if operation.kind == Kind.RETIRE or operation.status == "pending":
        return (0, 1)  # it may complete a round
    return (1,) if operation.status == "applied" else (0,)


def _pushes(operations: list[Operation]) -> Iterator[str]:
    """A worker's pushes are numbered from 0, and each is taken once."""
    taken: dict[int, Counter[int]] = {}
    for operation in operations:
        if operation.kind == Kind.PUSH and operation.status != "duplicate":
            taken.setdefault(operation.worker, Counter())[operation.number] += 1
    for worker, counts in sorted(taken.items()):
        twice = sorted(number for number, count in counts.items() if count > 1)
        if twice:
            yield f"{listed('push', twice)} of worker {worker} taken more than once"
        missing = sorted(set(range(max(counts) + 1)) - counts.keys())
        if missing:
            yield f"{listed('push', missing)} of worker {worker} missing, though later ones arrived"


def _examples(operations: list[Operation]) -> Iterator[str]:
    """A worker pushes no more examples than it has computed."""
    computed, pushed = examples(operations)
    for worker in sorted({*computed, *pushed}):
        if pushed[worker] > computed[worker]:
            yield (
                f"worker {worker} pushed updates of {pushed[worker]} examples, but computed only"
                f" {computed[worker]}"
            )


def examples(operations: list[Operation]) -> tuple[Counter[int], Counter[int]]:
    """The examples that each worker has computed, and those that are behind its pushes."""
    computed, pushed = Counter[int](), Counter[int]()
    for operation in operations:
        if operation.kind == Kind.STEP:
            computed[operation.worker] += operation.samples
        elif operation.kind == Kind.PUSH and operation.status != "duplicate":
            pushed[operation.worker] += operation.samples
    return computed, pushed


def _ledger(operations: list[Operation], ledger: dict[str, Any]) -> Iterator[str]:
    """The book has every push, and each as what it was."""
    counts = Counter(operation.status for operation in operations if operation.kind == Kind.PUSH)
    duplicates = counts.pop("duplicate", 0)
    checks = [
        ("pushed", sum(counts.values()), ledger["pushed"]),
        ("duplicates", duplicates, ledger["duplicates"]),
    ]
    if not counts["pending"]:  # pushes of a round are settled when it is over
        waiting = ledger["absorbed"] + ledger["pending"]
        checks += [
            ("applied", counts["applied"], ledger["applied"]),
            ("absorbed", counts["absorbed"], waiting),
        ]
        reasons = {*counts, *ledger["dropped"]} - {"applied", "absorbed", "pending"}
        checks += [
            (f"dropped ({reason})", counts[reason], ledger["dropped"].get(reason, 0))
            for reason in sorted(reasons)
        ]
    for name, found, told in checks:
        if found != told:
            yield f"{found} updates were {name} by the operations, but {told} by the book"


def _reported(operations: list[Operation], reported: list[Computed], certain: bool) -> Iterator[str]:
    """Every batch that a worker began was computed by it; where a step failed, it was not."""
    begun = Counter(
        (operation.worker, operation.number, operation.samples)
        for operation in operations
        if operation.kind == Kind.STEP
    )
    done = Counter((step.worker, step.lease, step.samples) for step in reported)
    for worker, lease, samples in sorted((begun - done).elements() if certain else ()):
        yield f"worker {worker} began on batch {lease} ({samples} examples), but reported no such step"
    for worker, lease, samples in sorted((done - begun).elements()):
        yield f"worker {worker} reported batch {lease} ({samples} examples), but never began on it"


def _described(operation: Operation) -> str:
    whose = f" of worker {operation.worker}" if operation.worker >= 0 else ""
    status = f" ({operation.status})" if operation.status else ""
    return f"a {operation.kind.name.lower()}{whose}{status}"

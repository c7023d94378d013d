"""The plan of a run: which leases lie between two evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from freewheel.job import Job


class Segment(NamedTuple):
    """Leases between two evaluations.

    Attributes:
        first: the first lease.
        limit: the lease after the last; None where an epoch's length is unknown.
        last: known to be the last of the run.
        epoch: epochs that were over before it, where their length is unknown.
        rest: where it goes on with another number of workers, the leases that are left: these numbers, then
            all from the second item on.
    """

    first: int
    limit: int | None
    last: bool = False
    epoch: int = 0
    rest: tuple[Sequence[int], int] | None = None

    def number(self, position: int) -> int:
        """The lease in this position of the segment, from 0; it may lie behind its end."""
        if self.rest is None:
            return self.first + position
        numbers, following = self.rest
        return numbers[position] if position < len(numbers) else following + position - len(numbers)


def begun(place: Mapping[str, Any]) -> Segment:
    """The segment in which a checkpoint was taken, as the engine's place tells."""
    return Segment(*(place[name] for name in Segment._fields))


class Done(NamedTuple):
    """How far a run has come."""

    steps: int
    samples: int


def planned_samples(job: Job) -> int | None:
    """Examples of the whole run, if that is known beforehand."""
    limits = [] if job.stop.max_samples is None else [job.stop.max_samples]
    if job.stop.epochs is not None and job.source.samples is not None:
        limits.append(job.stop.epochs * job.source.samples)
    return min(limits) if limits else None


def segments(
    job: Job, done: Callable[[], Done], begun: Segment | None = None
) -> Generator[Segment, None, str]:
    """Opens the source for one segment after the other; returns why there are no more.

    Args:
        job: the run.
        done: how far it has come; asked only where an epoch's length is unknown.
        begun: the segment to go on with, whose source stands where it stood in a checkpoint. It may end
            elsewhere than it did, if the run is to end elsewhere.
    """
    if job.source.batches is None:
        return (yield from _of_unknown_length(job, done, begun))
    total = total_leases(job)
    every = leases_between_evaluations(job)
    first = 0 if begun is None else begun.first
    while total is None or first < total or begun is not None:
        limit = first + every
        if total is not None and total - limit < every / 2:
            limit = total  # a short rest is not worth an evaluation of its own
        _open(job, first, limit, begun)
        rest, begun = None if begun is None else begun.rest, None
        yield Segment(first, limit, limit == total, rest=rest)
        first = limit
    return reason(job)


def _open(job: Job, first: int, limit: int | None, begun: Segment | None) -> None:
    if begun is None:
        job.source.open(first, limit)
    else:
        job.source.reopen(limit)


def reason(job: Job) -> str:
    """Why a run ends whose leases are used up."""
    return "epochs" if job.stop.epochs is not None and not _is_cut_short(job) else "max_samples"


def _of_unknown_length(
    job: Job, done: Callable[[], Done], begun: Segment | None
) -> Generator[Segment, None, str]:
    """A segment is one epoch, or as many batches as evaluations ask for."""
    stop, source, evaluation = job.stop, job.source, job.evaluation
    every = None
    if evaluation is not None and evaluation.every is not None:
        every = max(1, round(evaluation.every / source.batch_size))
    epoch = 0 if begun is None else begun.epoch
    while stop.epochs is None or epoch < stop.epochs or begun is not None:
        steps, samples = done()
        first = steps if begun is None else begun.first
        limits = [] if every is None else [first + every]
        if stop.max_samples is not None:
            left = max(0, -(-(stop.max_samples - samples) // source.batch_size))
            if left == 0 and begun is None:
                return "max_samples"
            limits.append(steps + left)
        _open(job, first, min(limits, default=None), begun)
        begun = None
        yield Segment(first, None, epoch=epoch)
        epoch += source.ended
    return "epochs"


def _is_cut_short(job: Job) -> bool:
    stop, source = job.stop, job.source
    if stop.max_samples is None or stop.epochs is None or source.samples is None:
        return stop.max_samples is not None
    return stop.max_samples < stop.epochs * source.samples


def total_leases(job: Job) -> int | None:
    """Leases of the whole run; None where only the clock ends it. The length of an epoch must be known."""
    stop, source = job.stop, job.source
    assert source.batches is not None
    assert source.samples is not None
    limits = []
    if stop.epochs is not None:
        limits.append(stop.epochs * source.batches)
    if stop.max_samples is not None:
        epochs, rest = divmod(stop.max_samples, source.samples)
        leases = math.ceil(rest * source.batches / source.samples)
        while leases and (source.samples_before(leases - 1) or 0) >= rest:
            leases -= 1  # only the last batch of an epoch is short
        limits.append(epochs * source.batches + leases)
    return min(limits) if limits else None


def leases_between_evaluations(job: Job) -> int:
    """Leases from one evaluation to the next. The length of an epoch must be known."""
    source, evaluation = job.source, job.evaluation
    assert source.batches is not None
    assert source.samples is not None
    if evaluation is None or evaluation.every is None:
        return source.batches
    return max(1, round(evaluation.every * source.batches / source.samples))

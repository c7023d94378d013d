"""The plan of a run: which leases lie between two evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

from freewheel.job import Job


class Segment(NamedTuple):
    """Leases between two evaluations.

    Attributes:
        first: the first lease.
        limit: the lease after the last; None where an epoch's length is unknown.
        last: known to be the last of the run.
    """

    first: int
    limit: int | None
    last: bool = False


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


def segments(job: Job, done: Callable[[], Done]) -> Generator[Segment, None, str]:
    """Opens the source for one segment after the other; returns why there are no more.

    Args:
        job: the run.
        done: how far it has come; asked only where an epoch's length is unknown.
    """
    if job.source.batches is None:
        return (yield from _of_unknown_length(job, done))
    total = total_leases(job)
    every = leases_between_evaluations(job)
    first = 0
    while total is None or first < total:
        limit = first + every
        if total is not None and total - limit < every / 2:
            limit = total  # a short rest is not worth an evaluation of its own
        job.source.open(first, limit)
        yield Segment(first, limit, limit == total)
        first = limit
    return reason(job)


def reason(job: Job) -> str:
    """Why a run ends whose leases are used up."""
    return "epochs" if job.stop.epochs is not None and not _is_cut_short(job) else "max_samples"


def _of_unknown_length(job: Job, done: Callable[[], Done]) -> Generator[Segment, None, str]:
    """A segment is one epoch, or as many batches as evaluations ask for."""
    stop, source, evaluation = job.stop, job.source, job.evaluation
    every = None
    if evaluation is not None and evaluation.every is not None:
        every = max(1, round(evaluation.every / source.batch_size))
    epoch = 0
    while stop.epochs is None or epoch < stop.epochs:
        first, samples = done()
        left = None
        if stop.max_samples is not None:
            left = max(0, -(-(stop.max_samples - samples) // source.batch_size))
        if left == 0:
            return "max_samples"
        size = min((n for n in (left, every) if n is not None), default=None)
        source.open(first, None if size is None else first + size)
        yield Segment(first, None)
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

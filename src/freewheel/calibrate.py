"""``calibrate``: a short run on this machine that gives a simulation its times."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from freewheel.calibration import Calibration, Measurement
from freewheel.engines.costs import server_seconds
from freewheel.errors import ConfigurationError
from freewheel.events import NOT_PUSHED, Event, Steps
from freewheel.machine import cores
from freewheel.methods import Method, by_name, stale_synchronous
from freewheel.simulation.checks import positive, whole
from freewheel.tasks.supervised import Loss, Step
from freewheel.train import fit

UNBOUNDED = 2**30  # steps of lead: nobody waits, so that no waiting is taken for computing
WARM_UP = 0.25  # of the time; memory is touched, kernels are chosen
LEAST_STEPS = 8
MOST_ROUNDS = 8  # where steps are so slow that two leave too few
ROUNDS = 2  # the numbers of workers take turns, so that a machine that slows down slows all alike
RATE = 1e-6  # the weights hardly move: nothing can diverge


def calibrate(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    step: Step | None = None,
    batch_size: int = 16,
    bptt: int | None = None,
    workers: Sequence[int] = (1, 2),
    seconds: float = 2.0,
    method: Method | str | None = None,
    **fit_arguments: Any,
) -> Calibration:
    """Measures how long the steps of a model take on this machine, for some numbers of worker threads.

    A step's time is the difference between the ends of two consecutive steps of its worker. The model is not
    changed.

    Threads of one machine fall into step with one another, by chance and for hundreds of steps, and their
    updates then do not see each other: the mean staleness of two seconds may be half or twice that of the
    next two. Give more ``seconds`` where it matters.

    Args:
        model: as in :func:`freewheel.fit`.
        data: as in :func:`freewheel.fit`.
        loss: as in :func:`freewheel.fit`.
        step: as in :func:`freewheel.fit`.
        batch_size: examples in one worker's minibatch.
        bptt: as in :func:`freewheel.fit`.
        workers: numbers of workers to measure, for instance 1 and the number of cores.
        seconds: of training for each of them, a quarter of it for warming up; more where steps are slow.
        method: what to measure, one in which nobody waits for others; the default pulls a copy of the weights
            before each step and pushes after it. ``hogwild()`` saves the copy.
        **fit_arguments: further arguments of :func:`freewheel.fit`, such as ``precision``.

    Raises:
        ConfigurationError: an argument cannot be used, or there was no time for enough steps.
        DataError: as in :func:`freewheel.fit`.
        KeyboardInterrupt: Ctrl-C.

    Example:
        >>> import torch, freewheel
        >>> x = torch.randn(512, 8); y = (x.sum(1) > 0).long()
        >>> model, loss = torch.nn.Linear(8, 2), torch.nn.CrossEntropyLoss()
        >>> calibration = freewheel.calibrate(model, (x, y), loss=loss, workers=(1, 2), seconds=0.2)
        >>> result = freewheel.fit(model, (x, y), loss=loss, workers=64,
        ...                        method=freewheel.stale_synchronous(),
        ...                        engine=calibration.engine(64, machines=True))
        >>> result.seconds > 0
        True
    """
    wanted = _numbers(workers)
    positive("seconds", seconds, "2.0 is enough for most models")
    chosen = _free(method)
    arguments = {"loss": loss, "step": step, "batch_size": batch_size, "bptt": bptt, **fit_arguments}
    records: dict[int, list[list[Steps]]] = {number: [] for number in wanted}
    for turn in range(MOST_ROUNDS):
        for number in [one for one in wanted if turn < ROUNDS or not _enough(one, records[one], seconds)]:
            listener = _Listener()
            result = fit(
                copy.deepcopy(model),
                data,
                method=chosen,
                workers=number,
                max_seconds=seconds / ROUNDS,
                monitors=[listener],
                **arguments,
            )
            if result.reason == "interrupted":
                raise KeyboardInterrupt
            records[number].append(listener.steps)
    found = tuple(measurement(number, records[number], WARM_UP * seconds / ROUNDS) for number in wanted)
    costs = server_seconds(copy.deepcopy(model), chosen.rule_for(1))
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Calibration(found, costs, weights, cores(), chosen.name)


class _Listener:
    """Keeps the events about steps."""

    def __init__(self) -> None:
        self.steps: list[Steps] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Steps):
            self.steps.append(event)


def measurement(workers: int, runs: Iterable[Iterable[Steps]], warm_up_s: float) -> Measurement:
    """What recorded steps say.

    Args:
        workers: how many there were.
        runs: of each run its events.
        warm_up_s: of each run, in seconds: steps that end before are left out.

    Raises:
        ConfigurationError: there are too few steps.
    """
    own, samples, staleness = _collected(runs, warm_up_s)
    seconds = [one for steps in own.values() for one in steps]
    if len(seconds) < LEAST_STEPS * workers:
        raise ConfigurationError(
            f"`seconds` were enough for {len(seconds)} steps of {workers} workers after the warm-up, and"
            f" {LEAST_STEPS} for each are needed; give more, or a smaller `batch_size`"
        )
    late_mean = sum(staleness) / len(staleness) if staleness else math.nan
    by_worker = tuple([tuple(own.get(worker, ())) for worker in range(workers)])
    return Measurement(workers, tuple(seconds), sum(samples) / len(samples), late_mean, by_worker)


def _enough(workers: int, runs: Iterable[Iterable[Steps]], seconds: float) -> bool:
    return len(_collected(runs, WARM_UP * seconds / ROUNDS)[1]) >= LEAST_STEPS * workers


def _collected(
    runs: Iterable[Iterable[Steps]], warm_up_s: float
) -> tuple[dict[int, list[float]], list[int], list[int]]:
    """Of every step after the warm-up its seconds, by worker, and examples; of every update its staleness."""
    seconds: dict[int, list[float]] = defaultdict(list)
    samples: list[int] = []
    staleness: list[int] = []
    for run in runs:
        last: dict[int, tuple[int, float]] = {}
        for worker, sequence, size, late, end in _rows(run):
            before, since = last.get(worker, (-2, 0.0))
            if since >= warm_up_s and sequence == before + 1 and end > since:
                seconds[worker].append(end - since)
                samples.append(size)
                staleness += [late] if late != NOT_PUSHED else []
            last[worker] = (sequence, end)
    return seconds, samples, staleness


def _rows(run: Iterable[Steps]) -> Iterable[tuple[int, int, int, int, float]]:
    for event in run:
        yield from zip(
            event.worker, event.sequence, event.samples, event.staleness, event.seconds, strict=True
        )


def _numbers(workers: Sequence[int]) -> list[int]:
    if isinstance(workers, int):
        raise ConfigurationError(f"`workers` must be a list of numbers, got {workers}; use ({workers},)")
    wanted = sorted({whole("workers", one, "for instance workers=(1, 2)") for one in workers})
    if not wanted or wanted[0] < 1:
        raise ConfigurationError(f"`workers` must be one or more numbers >= 1, got {tuple(workers)}")
    return wanted


def _free(method: Method | str | None) -> Method:
    """A method in which nobody waits for anybody."""
    if method is None:
        return stale_synchronous(UNBOUNDED, RATE, momentum=0.9)
    chosen = by_name(method)
    if chosen.rounds or not chosen.gate.open:
        raise ConfigurationError(
            f"`method` {chosen.name} lets workers wait for each other, and waiting would be taken for"
            " computing; leave it out, or use hogwild(), and simulate the method with the times found"
        )
    return chosen


__all__ = ["calibrate", "measurement"]

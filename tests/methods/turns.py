"""In which order equal workers take turns: the serial order, written down apart from the library.

Everybody who may start does; then the oldest computed step is delivered, and its worker may start again. So W
workers that never wait are W - 1 updates stale. When the batches are used up and nothing is under way, all
end, in their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Batch = Any


class Turn(NamedTuple):
    """A worker starts on a batch, its step is delivered, or it finds no batch left and ends."""

    event: Literal["start", "deliver", "end"]
    worker: int
    batch: Batch = None


def turns(
    batches: Iterable[Batch], workers: int, bound: int | None = None, warm_start: int = 0
) -> Iterator[Turn]:
    """The turns of workers that share one queue of batches.

    Args:
        batches: the queue.
        workers: how many.
        bound: clocks that a worker may be ahead of the slowest (stale synchronous parallel).
        warm_start: steps of the first worker before the others begin.
    """
    queue, exhausted = iter(batches), object()
    waiting, in_flight = deque(range(workers)), deque[Turn]()
    clocks = dict.fromkeys(range(workers), 0)
    while waiting or in_flight:
        for worker in list(waiting):
            if bound is not None and clocks[worker] - min(clocks.values()) > bound:
                continue
            if worker and clocks.get(0, warm_start) < warm_start:
                continue
            waiting.remove(worker)
            batch = next(queue, exhausted)
            if batch is exhausted:
                del clocks[worker]
                continue
            yield Turn("start", worker, batch)
            in_flight.append(Turn("deliver", worker, batch))
        if in_flight:
            turn = in_flight.popleft()
            yield turn
            clocks[turn.worker] += 1
            waiting.append(turn.worker)
    yield from [Turn("end", worker) for worker in range(workers)]


def deal(batches: Sequence[Batch], workers: int) -> list[Sequence[Batch]]:
    """What each of the equal workers gets of the queue: every W-th batch."""
    return [batches[worker::workers] for worker in range(workers)]


def mean(vectors: Sequence[Tensor]) -> Tensor:
    """The plain mean of vectors."""
    return torch.stack(list(vectors)).mean(0)

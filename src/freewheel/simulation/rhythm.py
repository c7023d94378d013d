"""How the steps of a worker lie in time: what part of each comes before its pull."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import final

import numpy as np

from freewheel.simulation.draws import Stream, generator, in_blocks
from freewheel.simulation.times import Sampler


@final
class Rhythm:
    """The steps of one worker, each split into a turnaround, from its last push to its pull, and computing.

    A split may be drawn for every step, so that the mean staleness follows from the mean share alone: threads
    that read live weights fall into and out of step with one another, for hundreds of steps or for two, and
    while they are in step their overlapping updates do not see each other. A fixed split would make the
    staleness of a whole run hang on the phase in which it happens to be. Drawn, the turnaround is for each
    step, with the probabilities that give the mean, nothing, anything alike, or all of the step. Then of two
    workers, whatever their phase, each sees a push of the other with probability 1 - share.

    Args:
        draw: seconds of whole steps.
        share: of a step, on average, that is turnaround, in [0, 1].
        seed: of the run.
        worker: whose steps they are.
        spread: draw the split of every step.
    """

    __slots__ = ("_draw", "_rests", "_share")

    def __init__(self, draw: Sampler, share: float, seed: int, worker: int, spread: bool) -> None:
        self._draw = draw
        self._share: Callable[[], float] | None = None
        if share:
            self._share = _shares(share, seed, worker) if spread else lambda: share
        self._rests: deque[float] = deque()  # computing of the steps that have been split

    def turnaround(self, now: float) -> float:
        """Seconds from a push, which is now, to the next pull."""
        if self._share is None:
            return 0.0
        whole = self._draw(now)
        before = self._share() * whole
        self._rests.append(whole - before)
        return before

    def computing(self, now: float) -> float:
        """Seconds of computing of a step that begins now; the first ones have no turnaround."""
        return self._rests.popleft() if self._rests else self._draw(now)

    def begin_anew(self) -> None:
        """The worker comes back: what was split before is forgotten."""
        self._rests.clear()


def _shares(mean: float, seed: int, worker: int) -> Callable[..., float]:
    random = generator(seed, Stream.TURNAROUND, worker)
    spread = 2 * min(mean, 1 - mean)  # the probability of a share between 0 and 1
    otherwise = 0.0 if mean < 0.5 else 1.0

    def draw(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        anything = random.random(count)
        return np.where(random.random(count) < spread, anything, otherwise)

    return in_blocks(draw)

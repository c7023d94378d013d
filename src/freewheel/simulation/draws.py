"""Random numbers that depend on (seed, purpose, worker, position) alone, never on who draws first."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from freewheel.errors import ConfigurationError

BLOCK = 256  # drawn at once: a single draw from a generator costs more than its share of a block


class Stream(IntEnum):
    """What the numbers are for, so that no two purposes share any."""

    TIMES = 0
    PAUSES = 1
    LATENCY = 2
    FAULTS = 3
    NOISE = 4
    TURNAROUND = 5


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The generator of one purpose and worker.

    The purpose and the worker are a spawn key and no part of the entropy, which NumPy pads with zeros:
    ``SeedSequence([seed, 1])`` and ``SeedSequence([seed, 1, 0])`` are the same.

    Raises:
        ConfigurationError: a negative seed.
    """
    sequence = np.random.SeedSequence(checked_seed(seed), spawn_key=(int(stream), *key))
    return np.random.Generator(np.random.PCG64(sequence))


def checked_seed(seed: int) -> int:
    """The seed, which NumPy takes without a sign only.

    Raises:
        ConfigurationError: it is negative.
    """
    if seed < 0:
        raise ConfigurationError(f"`seed` must be >= 0 for a simulation, got {seed}; use its absolute value")
    return seed


def in_blocks(
    draw: Callable[[int], np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
) -> Callable[..., float]:
    """One number after the other, drawn many at once.

    Args:
        draw: gives the next so many numbers.

    Returns:
        A function that takes the time, as samplers do, and needs it for nothing: one more function around
        this one would take longer than the draw.
    """
    block: list[float] = []

    def following(_now: float = 0.0) -> float:
        nonlocal block
        if not block:
            block = draw(BLOCK)[::-1].tolist()  # plain floats, taken from the end: the cheapest queue
        return block.pop()

    return following


class Uniforms:
    """Uniform numbers in [0, 1) by position; cheap where positions are asked for more or less in order.

    Args:
        seed: of the run.
        key: the purpose's own numbers, such as a worker.
    """

    __slots__ = ("_block", "_key", "_number", "_seed")

    def __init__(self, seed: int, *key: int) -> None:
        self._seed, self._key = seed, key
        self._number, self._block = -1, [0.0]

    def __getitem__(self, position: int) -> float:
        number, index = divmod(position, BLOCK)
        if number != self._number:
            self._block = generator(self._seed, Stream.FAULTS, *self._key, number).random(BLOCK).tolist()
            self._number = number
        return self._block[index]

"""What a process of a script and its launcher say to each other, beside pushes.

See ``engines/processes/messages.py`` for ``Push``, ``Start`` and ``Answer``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from freewheel.engines.processes.parcel import Parcel
from freewheel.params import Parameters

# --- from a worker ---


class Register(NamedTuple):
    """The worker has its model; answered by `Welcome` or `Refused`.

    Attributes:
        parameters: initial weights and their layout.
        method: pickled by value.
        label: the method in words.
    """

    parameters: Parameters
    method: bytes
    label: str


class Take(NamedTuple):
    """Asks for a batch; answered by `Dealt`, `Unordered` or `Exhausted`."""

    shard: int
    epoch: int


class Order(NamedTuple):
    """The batches of an epoch, each as what its loader's sampler gives."""

    shard: int
    epoch: int
    batches: list[Any]


class Returned(NamedTuple):
    """Batches that are done with.

    Attributes:
        shard: of which loader.
        epoch: of which epoch.
        finished: their numbers.
        unfinished: numbers of batches that are to be dealt again.
    """

    shard: int
    epoch: int
    finished: tuple[int, ...] = ()
    unfinished: tuple[int, ...] = ()


class Retire(NamedTuple):
    """The worker takes no step for now: nobody waits for it until it takes a batch again."""


class Barrier(NamedTuple):
    """The worker waits for all others; answered by `Passed`.

    Attributes:
        number: how many barriers its script has come to before, in this life.
    """

    number: int


# --- to a worker ---


class Welcome(NamedTuple):
    """The shared memory; the descriptors of its segments follow.

    Attributes:
        segments: how many.
        parcel: where the kit lies.
    """

    segments: int
    parcel: Parcel


class Refused(NamedTuple):
    """The model or the method cannot be used."""

    reason: str


class Dealt(NamedTuple):
    """A batch."""

    number: int
    batch: Any


class Unordered(NamedTuple):
    """Nobody has said yet which batches this epoch has."""


class Exhausted(NamedTuple):
    """No batch is left of this epoch."""


class Passed(NamedTuple):
    """Everybody has come to the barrier."""

"""Shards: spans of the flat vector, each with a version, a rule state and a lock of its own.

A server with one shard applies updates to whole tensors. With several, the trainable elements are cut into
spans of equal length wherever the boundary falls, so that one large layer does not make one shard slow. The
part of a tensor that lies in a span is seen as a 1-D view of its memory.
"""

from __future__ import annotations

import contextlib
import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from freewheel.book import Counts
from freewheel.errors import ConfigurationError
from freewheel.params import Entry, Parameters
from freewheel.rules import Rule, chain


class Piece(NamedTuple):
    """The part of an entry that lies in a shard: elements ``start <= i < stop`` in the order of memory."""

    position: int
    entry: Entry
    start: int
    stop: int

    @property
    def whole(self) -> bool:
        """All of the entry."""
        return self.stop - self.start == self.entry.numel

    def weight(self, flat: Tensor) -> Tensor:
        """The live weights of this piece."""
        if self.whole:
            return self.entry.view(flat)
        return flat[self.entry.offset + self.start : self.entry.offset + self.stop]

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of a tensor that has the entry's shape and strides."""
        if self.whole:
            return tensor
        memory = torch.as_strided(tensor, (self.entry.numel,), (1,))
        return memory[self.start : self.stop]


@dataclass(slots=True)
class Shard:
    """A span of the flat vector.

    Attributes:
        index: which shard, from 0.
        pieces: the parts of entries in it.
        span: its elements of the flat vector, padding included.
        applied: updates that were applied here, one counter a worker; each has one writer.
        state: of the rule, for these pieces.
        lock: held while an update is applied or weights are copied; does nothing unless an engine sets one.
    """

    index: int
    pieces: tuple[Piece, ...]
    span: slice
    applied: Counts
    names: tuple[str, ...] = ()
    weights: list[Tensor] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    lock: AbstractContextManager[Any] = field(default_factory=contextlib.nullcontext)

    @property
    def version(self) -> int:
        """Number of updates that were applied to this span."""
        return sum(self.applied)

    @property
    def numel(self) -> int:
        """Number of trainable elements."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    def cut(self, tensors: list[Tensor | None]) -> list[Tensor | None]:
        """The parts of whole tensors, one an entry, that belong here."""
        result: list[Tensor | None] = []
        for piece in self.pieces:
            tensor = tensors[piece.position]
            result.append(None if tensor is None else piece.of(tensor))
        return result


def cut(parameters: Parameters, count: int, workers: int) -> list[Shard]:
    """Cuts the trainable elements into ``count`` shards of equal length, give or take one element.

    Raises:
        ConfigurationError: fewer than one shard, or more shards than elements.

    Example:
        >>> from torch import nn
        >>> shards = cut(Parameters(nn.Linear(3, 2)), 2, workers=1)
        >>> [[(piece.entry.name, piece.start, piece.stop) for piece in shard.pieces] for shard in shards]
        [[('weight', 0, 4)], [('weight', 4, 6), ('bias', 0, 2)]]
    """
    entries = parameters.layout.trainable
    total = sum(entry.numel for entry in entries)
    check_shards(count, total)
    bounds = [number * total // count for number in range(count + 1)]
    shards = []
    for index, (first, last) in enumerate(itertools.pairwise(bounds)):
        pieces, begins = [], 0
        for position, entry in enumerate(entries):
            start, stop = max(first - begins, 0), min(last - begins, entry.numel)
            if start < stop:
                pieces.append(Piece(position, entry, start, stop))
            begins += entry.numel
        start = pieces[0].entry.offset + pieces[0].start
        stop = pieces[-1].entry.offset + pieces[-1].stop
        shards.append(Shard(index, tuple(pieces), slice(start, stop), [0] * workers))
    return shards


def check_shards(count: Any, weights: int) -> None:
    """Refuses a number of shards that cannot be.

    Raises:
        ConfigurationError: no whole number, below 1, or more than there are weights.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ConfigurationError(f"`shards` must be a whole number >= 1, got {count!r}; 1 is one server")
    if count > weights:
        raise ConfigurationError(
            f"`shards` is {count}, more than the {weights} trainable weights; use at most {weights}"
        )


def split(rule: Rule) -> tuple[Rule | None, Rule]:
    """What of a chain needs the whole update, and what may run on every shard of its own.

    Example:
        >>> from freewheel.rules import chain, clip, clip_value, sgd
        >>> head, tail = split(chain(clip(1.0), clip_value(0.1), sgd(0.5)))
        >>> head.describe, tail.describe
        ('clip(max_norm=1.0)', 'clip_value(limit=0.1) > sgd(lr=0.5)')
    """
    parts = rule.parts or (rule,)
    first = max((number for number, part in enumerate(parts, 1) if part.scope == "update"), default=0)
    if first == len(parts):
        raise ConfigurationError(
            f"`rule` {rule.describe} writes the weights and needs whole updates, so it cannot be cut over"
            " shards; use shards=1"
        )
    return (chain(*parts[:first]) if first else None), chain(*parts[first:])

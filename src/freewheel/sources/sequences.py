"""Segments of long sequences, for truncated back-propagation through time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor

from freewheel.errors import ConfigurationError, DataError
from freewheel.sources.base import Batch, Carry, Lease, Source


@final
class Sequences(Source):
    """Segments of long sequences for truncated back-propagation through time.

    The tokens are cut into ``streams`` groups of ``batch_size`` parallel sequences. A lease is the next
    segment of one group with the hidden state that its previous segment left; only one worker holds a group
    at a time, and workers take whichever group has waited longest.

    Args:
        tokens: ``(n,)`` int64; the targets are the next tokens.
        steps: length of a segment.
        batch_size: sequences in a group.
        streams: number of groups, at least the number of workers.

    Raises:
        DataError: too few tokens for one segment of every sequence.

    Example:
        >>> import torch
        >>> source = Sequences(torch.arange(9), steps=2, batch_size=2, streams=1)
        >>> source.open(0, None)
        >>> inputs, targets = source.take().batch
        >>> inputs.tolist(), targets.tolist()
        ([[0, 1], [4, 5]], [[1, 2], [5, 6]])
    """

    batches: int
    samples: int

    def __init__(self, tokens: Tensor, steps: int, batch_size: int, streams: int) -> None:
        super().__init__()
        for name, value in (("bptt", steps), ("batch_size", batch_size), ("streams", streams)):
            if value < 1:
                raise ConfigurationError(f"`{name}` must be >= 1, got {value}")
        length = (len(tokens) - 1) // (streams * batch_size)
        if length < 1:
            raise DataError(
                f"`data` has {len(tokens)} tokens, too few for {streams} x {batch_size} sequences;"
                " lower batch_size or the number of workers"
            )
        used = streams * batch_size * length
        self._inputs = tokens[:used].view(streams, batch_size, length)
        self._targets = tokens[1 : used + 1].view(streams, batch_size, length)
        self._steps = steps
        self._segments = -(-length // steps)
        self._position = [0] * streams
        self._carries = [Carry() for _ in range(streams)]
        self._ready = deque(range(streams))
        self._resting: set[int] = set()  # groups whose epoch is done
        self._end: float = math.inf  # the position at which a group has finished the epochs that are open
        self.streams = streams
        self.batch_size = batch_size
        self.batches = self._segments * streams
        self.samples = used

    def open(self, first: int, limit: int | None) -> None:
        """As :meth:`Source.open`; number 0 begins all groups anew.

        A group whose epoch is done rests until the next is opened: a fast worker would otherwise go on with
        its own group, and an epoch would hold some segments twice and others not at all.
        """
        super().open(first, limit)
        if first == 0:
            self._position = [0] * self.streams
        self._end = self._end_of(limit)
        unfinished = [stream for stream in range(self.streams) if self._position[stream] < self._end]
        self._ready = deque(sorted(unfinished, key=self._position.__getitem__))
        self._resting = set(range(self.streams)).difference(unfinished)

    def _end_of(self, limit: int | None) -> float:
        return math.inf if limit is None else -(-limit // self._segments // self.streams) * self._segments

    def reopen(self, limit: int | None) -> None:
        """Goes on after :meth:`restore`; groups that rested begin again if the limit is further off now."""
        super().reopen(limit)
        self._end = self._end_of(limit)
        unfinished = [stream for stream in sorted(self._resting) if self._position[stream] < self._end]
        self._ready.extend(sorted(unfinished, key=self._position.__getitem__))
        self._resting.difference_update(unfinished)

    def state(self) -> dict[str, Any]:
        """As :meth:`Source.state`, with every group's position and hidden state."""
        return {
            **super().state(),
            "position": self._position,
            "carries": [carry.value for carry in self._carries],
            "ready": list(self._ready),
            "resting": sorted(self._resting),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """As :meth:`Source.restore`."""
        super().restore(state)
        self._position = list(state["position"])
        for carry, value in zip(self._carries, state["carries"], strict=True):
            carry.value = value
        self._ready, self._resting = deque(state["ready"]), set(state["resting"])

    @property
    def order(self) -> str:
        """What the order of the tokens follows from."""
        return f"{self.streams} streams in segments of {self._steps}"

    def take(self) -> Lease | None:
        """The next segment of the group that has waited longest; None when no group is free."""
        try:
            stream = self._ready.popleft()
        except IndexError:
            return None
        number = self._take_next()
        if self._limit is not None and number >= self._limit:
            self._ready.appendleft(stream)
            return None
        return self._segment(number, stream)

    def fetch(self, number: int) -> Lease:
        """The next segment of the group that this number falls to (synchronous rounds)."""
        stream = number % self.streams
        self._ready.remove(stream)
        return self._segment(number, stream)

    def first(self) -> Batch:
        """The first segment of the first group."""
        return self._inputs[0, :, : self._steps], self._targets[0, :, : self._steps]

    def put_back(self, lease: Lease) -> None:
        """The group goes to the head of the queue, its state as before."""
        self._position[lease.stream] -= 1
        self._ready.appendleft(lease.stream)

    def acknowledge(self, lease: Lease) -> None:
        """The segment is done: the group may be taken again, unless its epoch is over."""
        if self._position[lease.stream] < self._end:
            self._ready.append(lease.stream)
        else:
            self._resting.add(lease.stream)

    def samples_before(self, number: int) -> int:
        """Tokens in the segments before ``number``, when all groups advance equally."""
        return round(number * self.samples / self.batches)

    def _segment(self, number: int, stream: int) -> Lease:
        position = self._position[stream] % self._segments
        self._position[stream] += 1
        if position == 0:
            self._carries[stream].value = None
        window = slice(position * self._steps, (position + 1) * self._steps)
        batch = (self._inputs[stream, :, window], self._targets[stream, :, window])
        return Lease(number, batch, batch[0].numel(), stream, self._carries[stream])

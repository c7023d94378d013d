"""What the main process and its workers say to each other, and the line it goes over.

Messages are small and few: weights, gradients and plain data lie in shared memory.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import struct
from collections import Counter
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from freewheel.engines.plan import Segment
from freewheel.server import Receipt
from freewheel.update import Update

HEADER = struct.Struct("=Q")  # before each message: its length
TIMEVAL = struct.Struct("@ll")

Row = tuple[int, int, int, int, float, int, float]
"""A finished step, as the record keeps it."""


# --- from a worker ---


class Ready(NamedTuple):
    """The worker has its replica."""


class Entry(NamedTuple):
    """A worker's page of the book, where it applies its updates itself."""

    pushed: int
    released: int
    counts: Counter[str]


class Report(NamedTuple):
    """A worker's page of the book, as it is now."""

    entry: Entry


class Standing(NamedTuple):
    """The worker has finished the segment.

    Attributes:
        buffers: of its replica that are no running statistics and have changed, by name.
    """

    buffers: dict[str, Tensor]


class Start(NamedTuple):
    """Asks whether the worker may start its next step; answered by `Answer` when it may.

    Attributes:
        finished: a step is over: it counts in the worker's progress.
    """

    finished: bool


class Push(NamedTuple):
    """An update whose tensors lie in the worker's mailbox.

    Attributes:
        update: without its tensors.
        present: which entries have a gradient; None is all.
        buffers: it carries running statistics.
        pulled: it carries the weights that it was computed at.
        now: the worker waits for the receipt; else it asks to start its next step, if the push ends one.
    """

    update: Update
    present: tuple[bool, ...] | None
    buffers: bool
    pulled: bool
    now: bool


class Ask(NamedTuple):
    """Asks for a batch; answered by `BatchSent` or `NoBatch`.

    Attributes:
        step: of the segment, from 0.
    """

    step: int


class Done(NamedTuple):
    """The batch that was delivered is used; what the stream carries on."""

    carried: Any


class Deposit(NamedTuple):
    """What the worker holds for itself; if it is within a segment, it waits until it may go on.

    Attributes:
        state: a tree of plain values and tensors.
    """

    state: Any


class Flushed(NamedTuple):
    """Whether the worker had anything to push."""

    found: bool


class Failed(NamedTuple):
    """The worker's step raised an error, and its process ends.

    Attributes:
        sequence: of the step.
        error: pickled; empty if it cannot be.
        kind: name of its class.
        message: what it says.
        trace: its traceback, as text.
    """

    sequence: int
    error: bytes
    kind: str
    message: str
    trace: str


# --- to a worker ---


class Work(NamedTuple):
    """Opens a segment.

    Attributes:
        segment: which batches there are.
        began: when training time was 0, by the system's monotonic clock.
        step: of the segment that the worker begins with: others before it were another life's.
        asks: before the first step.
    """

    segment: Segment
    began: float
    step: int = 0
    asks: bool = False


class Answer(NamedTuple):
    """What became of a push, and whether the worker may start its next step."""

    receipt: Receipt | None
    go: bool


class BatchSent(NamedTuple):
    """A batch; what its stream carries on."""

    number: int
    batch: Any
    samples: int
    stream: int
    carries: bool
    carried: Any


class NoBatch(NamedTuple):
    """There is no batch left in this segment."""


class Flush(NamedTuple):
    """Asks a worker to push what it holds back; answered by `Flushed`."""

    final: bool


class Show(NamedTuple):
    """Asks a worker that stands still for its `Deposit`."""


class TakeBack(NamedTuple):
    """What the worker held when the checkpoint was taken that the run goes on from."""

    state: Any


class Quit(NamedTuple):
    """The run is over."""


@final
class Line:
    """One end of the connection between the main process and a worker.

    Pickled by this module, since the reductions of ``torch.multiprocessing`` would send every tensor as a
    file in ``/dev/shm``.

    Args:
        connection: of a pair of sockets; owned by the line from here on.
        patience_s: for a receiver that reads nothing while a long message is sent; None for ever.
    """

    def __init__(self, connection: Connection, patience_s: float | None = None) -> None:
        with connection:
            self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._patience_s = patience_s
        if patience_s is not None:
            limit = TIMEVAL.pack(int(patience_s), int(patience_s % 1 * 1e6))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._begin(HEADER.size, head=True)

    def fileno(self) -> int:
        """For a selector."""
        return self._socket.fileno()

    def send(self, message: Any) -> None:
        """Sends a message; waits only where the other end is far behind.

        Raises:
            ConnectionError: the other end is closed, or has read nothing for too long; it is cut off then.
        """
        file = io.BytesIO()
        file.write(HEADER.pack(0))
        _Pickler(file, protocol=5).dump(message)
        data = file.getbuffer()
        HEADER.pack_into(data, 0, len(data) - HEADER.size)
        try:
            self._socket.sendall(data)
        except BlockingIOError as error:
            self._socket.shutdown(socket.SHUT_RDWR)  # a part of the message may be there
            raise BrokenPipeError(f"the other end has read nothing for {self._patience_s:g} s") from error

    def receive(self) -> Any:
        """Waits for the next message.

        Raises:
            EOFError: the other end is closed.
        """
        return self._next(0)

    def arrived(self) -> Any:
        """The next message if all of it is here, else None: the sender may have been stopped in the middle.

        Raises:
            EOFError: the other end is closed.
        """
        return self._next(socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()

    def _begin(self, size: int, head: bool) -> None:
        """The next bytes are a header, or a message."""
        self._bytes, self._filled, self._head = memoryview(bytearray(size)), 0, head

    def _next(self, flags: int) -> Any:
        while True:
            while self._filled < len(self._bytes):
                try:
                    count = self._socket.recv_into(self._bytes[self._filled :], 0, flags)
                except BlockingIOError:
                    return None
                if not count:
                    raise EOFError
                self._filled += count
            data = self._bytes
            if self._head:
                self._begin(HEADER.unpack(data)[0], head=False)
                continue
            self._begin(HEADER.size, head=True)
            return pickle.loads(data)


class _Pickler(pickle.Pickler):
    """Writes plain tensors as their bytes: twenty times faster than PyTorch's own way."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.layout is not torch.strided or not obj.is_cpu or obj.requires_grad:
            return NotImplemented
        if obj.is_quantized or obj.is_conj() or obj.is_neg():
            return NotImplemented
        flat = obj.contiguous().reshape(-1).view(torch.uint8)
        return _tensor, (flat.numpy(), obj.dtype, tuple(obj.shape))


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(data).view(dtype).view(shape)

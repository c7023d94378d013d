"""Memory that the processes of one run share.

A segment is memory without a name (``memfd_create``), which processes get as a file descriptor: nobody else
can open it, and when the last process that has it is gone, however it went, so is the memory. Nothing is left
in ``/dev/shm``, and its size limit, small in containers, does not apply.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

LINE = 64  # bytes of a cache line; every tensor in a segment begins on one
WORDS = LINE // 8  # int64 on a line


class Address(NamedTuple):
    """Where a tensor lies.

    Attributes:
        segment: which segment of the arena.
        offset: its first byte.
        dtype: its type.
        shape: its shape.
        stride: its strides, in elements.
    """

    segment: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@final
class Arena:
    """The shared memory of one run: segments, each reserved once, for as many tensors as are known by then.

    Attributes:
        descriptors: the file descriptors of the segments, to attach them in another process.

    Example:
        >>> arena = Arena()
        >>> [weights] = arena.place([torch.ones(3)])
        >>> twin = Arena.attached([os.dup(fd) for fd in arena.descriptors])
        >>> twin.tensor(arena.address(weights)).add_(1)
        tensor([2., 2., 2.])
        >>> weights
        tensor([2., 2., 2.])
        >>> arena.close(), twin.close()
        (None, None)
    """

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        weakref.finalize(self, _close_all, self.descriptors)
        self._segments: list[Tensor] = []  # (bytes,) uint8
        self._numbers: dict[int, int] = {}  # address of a segment's memory -> its number

    @classmethod
    def attached(cls, descriptors: Sequence[int]) -> Arena:
        """The same arena in another process; it owns these descriptors from here on."""
        arena = cls()
        for descriptor in descriptors:
            arena._map(descriptor, os.fstat(descriptor).st_size)
        return arena

    def zeros(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """New tensors, all in one segment."""
        tensors = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
        offsets, size = [], 0
        for tensor in tensors:
            offsets.append(size)
            size += _rounded(tensor.numel() * tensor.element_size())
        number = self._reserve(size)
        return [
            self.tensor(Address(number, offset, dtype, tuple(tensor.shape), tensor.stride()))
            for offset, tensor in zip(offsets, tensors, strict=True)
        ]

    def place(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies tensors into a new segment; those that share memory share it there, too.

        Args:
            tensors: dense, on the processor.

        Returns:
            Tensors of the same values, shapes and strides.
        """
        groups: dict[int, list[int]] = {}
        for position, tensor in enumerate(tensors):
            groups.setdefault(tensor.untyped_storage().data_ptr(), []).append(position)
        spans = [_Span.around([tensors[position] for position in members]) for members in groups.values()]
        starts, size = [], 0
        for span in spans:
            starts.append(size + span.first % LINE)
            size += _rounded(span.first % LINE + span.size)
        number = self._reserve(size)
        result: dict[int, Tensor] = {}
        for span, start, members in zip(spans, starts, groups.values(), strict=True):
            self._segments[number][start : start + span.size].copy_(span.bytes())
            for position in members:
                tensor = tensors[position]
                offset = start + _first_byte(tensor) - span.first
                address = Address(number, offset, tensor.dtype, tuple(tensor.shape), tensor.stride())
                result[position] = self.tensor(address)
        return [result[position] for position in range(len(tensors))]

    def address(self, tensor: Tensor) -> Address | None:
        """Where a tensor lies; None if it is not in the arena."""
        number = self._numbers.get(tensor.untyped_storage().data_ptr())
        if number is None:
            return None
        return Address(number, _first_byte(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride())

    def tensor(self, address: Address) -> Tensor:
        """The tensor at an address. It shares memory, but no version counter, with others there."""
        typed = self._segments[address.segment].view(address.dtype)
        first = address.offset // typed.element_size()
        return torch.as_strided(typed, address.shape, address.stride, first).data

    def close_descriptors(self) -> None:
        """Everybody has attached the segments: they live on as mapped memory, until nobody has that."""
        _close_all(self.descriptors)

    def close(self) -> None:
        """Lets go of the segments; the memory is freed with the last tensor in it."""
        self.close_descriptors()
        self._segments, self._numbers = [], {}

    def _reserve(self, size: int) -> int:
        size = max(size, LINE)
        descriptor = _anonymous_file()
        try:
            os.ftruncate(descriptor, size)
        except BaseException:
            os.close(descriptor)
            raise
        return self._map(descriptor, size)

    def _map(self, descriptor: int, size: int) -> int:
        self.descriptors.append(descriptor)
        segment = torch.frombuffer(mmap.mmap(descriptor, size), dtype=torch.uint8)
        self._numbers[segment.data_ptr()] = len(self._segments)
        self._segments.append(segment)
        return len(self._segments) - 1


@final
class SharedCounts:
    """Counts in shared memory, one a worker; each has one writer, who needs no lock.

    Args:
        tensor: ``(workers,)`` int64 in an arena. Reading and writing one element is one instruction.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._cells = memory_of(tensor)

    def __getitem__(self, worker: int) -> int:
        count: int = self._cells[worker]
        return count

    def __setitem__(self, worker: int, count: int) -> None:
        self._cells[worker] = count

    def __iter__(self) -> Iterator[int]:
        return iter(self._cells)

    def __reduce__(self) -> tuple[type[SharedCounts], tuple[Tensor]]:
        return SharedCounts, (self._tensor,)


def memory_of(tensor: Tensor) -> memoryview:
    """A tensor's elements as Python sees memory."""
    array: Any = tensor.numpy()
    return memoryview(array)


class _Span(NamedTuple):
    """The bytes of memory between the first and the last of some tensors."""

    tensor: Tensor  # one of them
    first: int  # byte of its storage
    size: int

    @classmethod
    def around(cls, tensors: list[Tensor]) -> _Span:
        first = min(_first_byte(tensor) for tensor in tensors)
        end = max(_first_byte(tensor) + _extent(tensor) for tensor in tensors)
        return cls(tensors[0], first, end - first)

    def bytes(self) -> Tensor:
        """The memory itself, ``(size,)`` uint8."""
        storage = self.tensor.untyped_storage()
        return torch.empty(0, dtype=torch.uint8).set_(storage, self.first, (self.size,), (1,))


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _first_byte(tensor: Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last one."""
    if not tensor.numel():
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def _rounded(size: int) -> int:
    return -(-size // LINE) * LINE


def _anonymous_file() -> int:
    """A descriptor of memory without a name; where the system has none, of a file that is deleted already."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("freewheel", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())

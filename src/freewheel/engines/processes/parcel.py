"""What all worker processes of a run are given, pickled once into shared memory.

By value goes what a process cannot import: lambdas, local classes, everything of ``__main__``. Tensors lie in
the arena and are the same memory for everybody, as on threads; large arrays of NumPy likewise. What a
worker changes for itself (its replica) is copied there.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, final

import cloudpickle  # type: ignore[import-untyped]
import numpy as np
import torch
from torch import Tensor

from freewheel.engines.processes.shared import Address, Arena, memory_of
from freewheel.errors import ConfigurationError

ARGUMENTS = {
    "module": "`model`",
    "task": "`loss`, `step` or `metrics`",
    "equipment": "`method`",
    "server": "`method`",
    "source": "`data`",
}
"""What a user calls the contents."""

LARGE = 4096  # bytes from which on an array is shared, and not copied to everybody


class Parcel(NamedTuple):
    """Where the pickled content lies, and the table of the tensors in it."""

    content: Address
    table: Address


def packed(contents: Mapping[str, Any], arena: Arena) -> Parcel:
    """Pickles the contents into the arena.

    Args:
        contents: by name.
        arena: tensors in it are referred to, others are copied into it.

    Raises:
        ConfigurationError: something cannot be sent to another process; the message names it.
    """
    file = io.BytesIO()
    packer = _Packer(file)
    try:
        packer.dump(dict(contents))
    except Exception as error:
        raise _refusal(_culprit(contents), error) from error
    table = pickle.dumps(packer.table(arena))
    content, listed = arena.place([_bytes(file.getbuffer()), _bytes(table)])
    return Parcel(_address(arena, content), _address(arena, listed))


def check_sendable(contents: Mapping[str, Any]) -> None:
    """Pickles the contents, tensors left out, and throws the pickle away.

    Args:
        contents: by name, as for :func:`packed`.

    Raises:
        ConfigurationError: something cannot be sent to another process; the message names it.
    """
    for name, value in contents.items():
        try:
            _Packer(_Nowhere(), keep=False).dump(value)
        except Exception as error:
            raise _refusal(ARGUMENTS.get(name, f"`{name}`"), error) from error


def _refusal(what: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{what} cannot be sent to the worker processes ({type(error).__name__}: {error}); leave out open"
        " files, locks and generators, or use engine='threads'"
    )


def unpacked(parcel: Parcel, arena: Arena) -> dict[str, Any]:
    """The contents, in a worker process."""
    tensors, arrays = pickle.loads(memory_of(arena.tensor(parcel.table)))
    buffers = [memory_of(arena.tensor(address)) for address in arrays]
    unpacker = _Unpacker(io.BytesIO(memory_of(arena.tensor(parcel.content))), buffers=buffers)
    unpacker.tensors = [arena.tensor(address) for address in tensors]
    contents: dict[str, Any] = unpacker.load()
    return contents


@final
class _Packer(cloudpickle.CloudPickler):  # type: ignore[misc]  # the library has no types
    """Leaves tensors and large arrays out, and notes them."""

    def __init__(self, file: Any, keep: bool = True) -> None:
        self._arrays: list[Tensor] = []
        leave = partial(_leave_in, self._arrays) if keep else lambda buffer: False
        super().__init__(file, protocol=5, buffer_callback=leave)
        self._tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        """The number of a tensor; None pickles the object itself."""
        if type(obj) is not Tensor or not _is_plain(obj) or not obj.numel():
            return None
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self._tensors)
            self._tensors.append(obj)  # kept, or another object could get its identity
        return number

    def reducer_override(self, obj: Any) -> Any:
        """How an object is pickled that PyTorch does not pickle well, or the library's own way."""
        if type(obj) is torch.Generator and obj.device.type == "cpu":
            return _generator, (obj.get_state().numpy().tobytes(),)
        if type(obj) is Tensor and _is_plain(obj) and not obj.numel():
            return _empty, (tuple(obj.shape), obj.dtype)
        return super().reducer_override(obj)

    def table(self, arena: Arena) -> tuple[list[Address], list[Address]]:
        """Addresses of the tensors and of the arrays, once they have all been placed."""
        others = [tensor for tensor in self._tensors if arena.address(tensor) is None]
        placed = iter(arena.place([*others, *self._arrays]))
        tensors = [tensor if arena.address(tensor) is not None else next(placed) for tensor in self._tensors]
        arrays = list(placed)
        return [_address(arena, tensor) for tensor in tensors], [_address(arena, array) for array in arrays]


@final
class _Nowhere:
    """A file of which nothing is kept."""

    def write(self, data: bytes) -> int:
        return len(data)


@final
class _Unpacker(pickle.Unpickler):
    tensors: list[Tensor]

    def persistent_load(self, pid: int) -> Tensor:
        """The tensor with this number."""
        return self.tensors[pid]


def _leave_in(arrays: list[Tensor], buffer: pickle.PickleBuffer) -> bool:
    """Whether a buffer stays in the pickle; else it is among the arrays."""
    with buffer.raw() as memory:
        if memory.nbytes < LARGE:
            return True
        arrays.append(_bytes(memory))
    return False


def _generator(state: bytes) -> torch.Generator:
    """Older versions cannot pickle one, newer ones take no state from a part of other memory."""
    generator = torch.Generator()
    generator.set_state(_bytes(state))
    return generator


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory of its own: in the arena it would grow over its neighbour."""
    return torch.empty(shape, dtype=dtype)


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.is_cpu
        and not tensor.requires_grad
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def _bytes(data: Any) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _address(arena: Arena, tensor: Tensor) -> Address:
    address = arena.address(tensor)
    assert address is not None
    return address


def _culprit(contents: Mapping[str, Any]) -> str:
    for name, value in contents.items():
        try:
            _Packer(_Nowhere(), keep=False).dump(value)
        except Exception:
            return ARGUMENTS.get(name, f"`{name}`")
    return "an argument"

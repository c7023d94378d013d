"""All parameters of a model in one contiguous float32 vector with named views.

Sharing, pushing, sharding and updating are then operations on one vector or a slice of it. The module is
*bound* to the vector: its weights are views. A *replica* is a second module whose weights are the same
views: it has its own gradients, hooks and hidden state, and costs no second copy of the weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError

ALIGNMENT = 16  # float32 elements: entries begin on 64-byte cache lines, so neighbours do not share one


@dataclass(frozen=True, slots=True)
class Entry:
    """One distinct tensor inside a flat vector.

    Attributes:
        name: where the module has it first, such as ``"2.weight"``.
        shape: its shape.
        order: its dimensions from slowest to fastest in memory; ``(0, 2, 3, 1)`` is channels_last.
        offset: its first element in the flat vector.
        trainable: it receives gradients.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    offset: int
    trainable: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def view(self, flat: Tensor) -> Tensor:
        """This entry as a view of ``flat``, with its shape and strides."""
        piece = flat[self.offset : self.offset + self.numel]
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return piece.view([self.shape[d] for d in self.order]).permute(inverse)


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tensor lies where in a flat vector; trainable entries come first.

    Attributes:
        entries: the distinct tensors, in the order of their offsets.
        size: length of the flat vector, with the padding between entries.
    """

    entries: tuple[Entry, ...]
    size: int

    @property
    def trainable(self) -> tuple[Entry, ...]:
        """The entries that receive gradients."""
        return tuple(entry for entry in self.entries if entry.trainable)

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view of ``flat`` per entry."""
        return [entry.view(flat) for entry in self.entries]


def _memory_order(tensor: Tensor, channels_last: bool) -> tuple[int, ...]:
    if channels_last and tensor.dim() == 4:
        return (0, 2, 3, 1)
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda d: (-strides[d], d)))


def _lay_out(tensors: list[tuple[str, Tensor, bool]], channels_last: bool = False) -> Layout:
    entries, offset = [], 0
    for name, tensor, trainable in tensors:
        order = _memory_order(tensor, channels_last)
        entries.append(Entry(name, tuple(tensor.shape), order, offset, trainable))
        offset += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
    return Layout(tuple(entries), offset)


def _named_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """(name, buffer, persistent) of every distinct buffer."""
    seen: set[int] = set()
    for path, submodule in module.named_modules():
        for name, buffer in submodule.named_buffers(recurse=False):
            if id(buffer) not in seen:
                seen.add(id(buffer))
                full = f"{path}.{name}" if path else name
                yield full, buffer, name not in submodule._non_persistent_buffers_set


def _is_statistic(buffer: Tensor, persistent: bool) -> bool:
    # Running statistics are persistent and finite. Masks and position tables are neither trained nor blended
    # (blending two -inf gives NaN), so they are shared between replicas like frozen weights.
    return buffer.dtype == torch.float32 and persistent and bool(torch.isfinite(buffer).all())


def _is_constant(buffer: Tensor, persistent: bool) -> bool:
    return buffer.is_floating_point() and not (persistent and buffer.dtype == torch.float32)


def running_statistics(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers, by name, that change while a module trains: BatchNorm's running mean and variance."""
    return [
        (name, buffer)
        for name, buffer, persistent in _named_buffers(module)
        if _is_statistic(buffer, persistent)
    ]


def check_module(module: nn.Module) -> torch.device:
    """The device of a module that can be trained.

    Raises:
        ConfigurationError: nothing to train, other dtypes, several devices, uninitialised or sparse
            parameters.
    """
    parameters = dict(module.named_parameters())
    buffers = {name: buffer for name, buffer, _ in _named_buffers(module)}
    for name, tensor in (*parameters.items(), *buffers.items()):
        if nn.parameter.is_lazy(tensor):
            raise ConfigurationError(f"{name!r} has no shape yet; run one batch through the model first")
        if tensor.device.type == "meta":
            raise ConfigurationError(f"{name!r} is on the meta device; create the model with data")
    for name, parameter in parameters.items():
        if parameter.layout is not torch.strided:
            raise ConfigurationError(
                f"parameter {name!r} is sparse; freewheel needs dense weights: call .to_dense() on it"
            )
        if parameter.dtype != torch.float32:
            raise ConfigurationError(
                f"parameter {name!r} is {parameter.dtype}; freewheel trains float32 weights: call"
                " model.float() (for bfloat16 arithmetic use precision='bf16')"
            )
    if not any(parameter.requires_grad for parameter in parameters.values()):
        what = "only frozen parameters" if parameters else "no parameters"
        raise ConfigurationError(f"`model` ({type(module).__name__}) has {what}; there is nothing to train")
    _check_memory(parameters)
    devices = {parameter.device for parameter in parameters.values()}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ConfigurationError(
            f"`model` lies on several devices ({names}); move it to one with model.to(device)"
        )
    for name, submodule in module.named_modules():
        if getattr(submodule, "sparse", False) and isinstance(submodule, nn.Embedding | nn.EmbeddingBag):
            raise ConfigurationError(
                f"{name!r} has sparse=True; freewheel needs dense gradients: use sparse=False"
            )
    return devices.pop()


def _check_memory(parameters: dict[str, nn.Parameter]) -> None:
    owners: dict[int, str] = {}
    for name, parameter in parameters.items():
        owner = owners.setdefault(parameter.data_ptr(), name)
        if owner != name and parameter.numel():
            raise ConfigurationError(
                f"parameters {owner!r} and {name!r} share memory but are two objects; tie them by making"
                " them one Parameter: b.weight = a.weight"
            )


class Parameters:
    """The flat vector of a module's parameters, and the flat vector of its running statistics.

    Tied weights are one entry. Frozen parameters lie behind the trainable ones. Floating-point buffers that
    are running statistics (BatchNorm) lie in ``statistics``, beside the weights: descent never touches them.
    Other buffers are left where they are.

    Args:
        module: float32 parameters on one device.
        channels_last: store 4-D weights with the channels fastest.

    Attributes:
        flat: ``(layout.size,)`` float32.
        layout: the entries of ``flat``.
        statistics: ``(statistics_layout.size,)`` float32, possibly empty.
        statistics_layout: the entries of ``statistics``.

    Raises:
        ConfigurationError: nothing to train, other dtypes, several devices, uninitialised or sparse
            parameters.

    Example:
        >>> from torch import nn
        >>> parameters = Parameters(nn.Linear(3, 2))
        >>> [(entry.name, entry.shape, entry.offset) for entry in parameters.layout.entries]
        [('weight', (2, 3), 0), ('bias', (2,), 16)]
    """

    def __init__(self, module: nn.Module, channels_last: bool = False) -> None:
        device = check_module(module)
        distinct = list(module.named_parameters())  # a tied weight appears once
        ordered = sorted(distinct, key=lambda item: not item[1].requires_grad)
        buffers = running_statistics(module)
        self.layout = _lay_out([(n, p, p.requires_grad) for n, p in ordered], channels_last)
        self.statistics_layout = _lay_out([(n, b, False) for n, b in buffers])
        self.flat = torch.zeros(self.layout.size, device=device)
        self.statistics = torch.zeros(self.statistics_layout.size, device=device)
        self._names = [name for name, _ in ordered]
        self._load([p for _, p in ordered], [b for _, b in buffers])

    @torch.no_grad()
    def _load(self, parameters: list[nn.Parameter], buffers: list[Tensor]) -> None:
        for view, parameter in zip(self.layout.views(self.flat), parameters, strict=True):
            view.copy_(parameter)
        for view, buffer in zip(self.statistics_layout.views(self.statistics), buffers, strict=True):
            view.copy_(buffer)

    def views(self) -> dict[str, Tensor]:
        """Every parameter by its name, as a view of ``flat``: changing it changes the module."""
        return {entry.name: entry.view(self.flat) for entry in self.layout.entries}

    def trainable_views(self) -> list[Tensor]:
        """The trainable parameters as views of ``flat``, in the order of the layout."""
        return [entry.view(self.flat) for entry in self.layout.trainable]

    def bind(self, module: nn.Module) -> None:
        """Makes the module's weights and running statistics views of this object's vectors.

        Assigns ``.data``: parameters keep their identity, so ties, ``nn.LSTM`` and the user's own references
        stay valid, and no version counter is shared (autograd would raise when another worker writes).
        """
        parameters = dict(module.named_parameters())
        buffers = {name: buffer for name, buffer, _ in _named_buffers(module)}
        for entry in self.layout.entries:
            parameters[entry.name].data = entry.view(self.flat)
        for entry in self.statistics_layout.entries:
            buffers[entry.name].data = entry.view(self.statistics)

    def private_buffers(self, module: nn.Module) -> list[str]:
        """Names of the buffers that every replica has of its own and that are no running statistics.

        BatchNorm's count of batches, say; see :meth:`replica`.
        """
        statistics = {entry.name for entry in self.statistics_layout.entries}
        return [
            name
            for name, buffer, persistent in _named_buffers(module)
            if name not in statistics and not _is_constant(buffer, persistent)
        ]

    @staticmethod
    def release(module: nn.Module) -> None:
        """Gives a bound module tensors of its own again, with the same values."""
        tensors = [*module.parameters(), *(buffer for _, buffer, _ in _named_buffers(module))]
        for tensor in tensors:
            tensor.data = tensor.data.clone(memory_format=torch.preserve_format)

    def replica(
        self, module: nn.Module, flat: Tensor | None = None
    ) -> tuple[nn.Module, list[nn.Parameter], Tensor]:
        """A module of its own whose weights are views of ``flat``.

        Args:
            module: the module this object was made from.
            flat: another vector of the same layout, a worker's own copy; None is the shared one.

        Returns:
            The replica, its trainable parameters in the order of the layout, and its private copy of the
            running statistics, ``(statistics_layout.size,)``.

        Raises:
            ConfigurationError: the module cannot be deep-copied.
        """
        parameters = dict(module.named_parameters())
        memo: dict[int, object] = {}
        for entry in self.layout.entries:
            original = parameters[entry.name]
            vector = self.flat if flat is None or not entry.trainable else flat
            memo[id(original)] = nn.Parameter(entry.view(vector).data, requires_grad=original.requires_grad)
        private = self.statistics.clone()
        statistics = {entry.name: entry for entry in self.statistics_layout.entries}
        for name, buffer, persistent in _named_buffers(module):
            if name in statistics:
                memo[id(buffer)] = statistics[name].view(private)
            elif _is_constant(buffer, persistent):
                memo[id(buffer)] = buffer  # a constant table: shared
        twin = _deep_copy(module, memo)
        by_name = dict(twin.named_parameters())
        return twin, [by_name[entry.name] for entry in self.layout.trainable], private


def _deep_copy(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise ConfigurationError(
            f"`model` ({type(module).__name__}) cannot be copied for the workers: {error}. Each worker needs"
            " a copy of the module (not of its weights): keep locks, open files and tensors that depend on"
            " weights out of it"
        ) from error

"""A tree of plain values and tensors as JSON and named tensors, and back. Nothing is ever unpickled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from freewheel.errors import CheckpointError

Tree = Any
"""Dictionaries, lists and tuples of None, booleans, numbers, strings and tensors."""

_TENSOR, _TUPLE, _ITEMS, _COMPLEX = "$tensor", "$tuple", "$items", "$complex"
_PLAIN = (type(None), bool, int, float, str)


def copied(tree: Tree) -> Tree:
    """The same tree with containers and tensors of its own, in the processor's memory.

    Args:
        tree: of any values; what is neither a container nor a tensor is handed on as it is.
    """
    if isinstance(tree, Tensor):
        return _copy(tree)
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [copied(value) for value in tree]
    if type(tree) is tuple:
        return tuple([copied(value) for value in tree])
    return tree


def placed(tree: Tree, device: torch.device) -> Tree:
    """The same tree with its floating-point tensors on a device; the others are counters and generators."""
    if isinstance(tree, Tensor):
        return tree.to(device) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: placed(value, device) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([placed(value, device) for value in tree])
    return tree


def _copy(tensor: Tensor) -> Tensor:
    """A copy with the order of the tensor's dimensions in memory, or contiguous where elements overlap."""
    copy = torch.empty_like(tensor, device="cpu", memory_format=torch.preserve_format)
    return copy.copy_(tensor.detach())


def flatten(tree: Tree) -> tuple[Tree, dict[str, Tensor]]:
    """A tree of JSON values that refers to tensors, and the tensors by name.

    Args:
        tree: as :func:`copied` gives it.

    Raises:
        CheckpointError: it holds something else than a :data:`Tree` does; the message says where.

    Example:
        >>> plain, tensors = flatten({"momentum": [torch.ones(2), None], "versions": (3, 4)})
        >>> plain["versions"], sorted(tensors)
        ({'$tuple': [3, 4]}, ['momentum/0'])
        >>> unflatten(plain, tensors)["versions"]
        (3, 4)
    """
    tensors: dict[str, Tensor] = {}
    return _plain(tree, "", tensors), tensors


def _plain(tree: Tree, path: str, tensors: dict[str, Tensor]) -> Tree:
    if type(tree) in _PLAIN:
        return tree
    if isinstance(tree, Tensor):
        if tree.is_complex():  # safetensors has one kind of complex numbers only
            return {_COMPLEX: _named(torch.view_as_real(tree.resolve_conj()), path or "tensor", tensors)}
        return _named(tree, path or "tensor", tensors)
    if type(tree) is list:
        return [_plain(value, _below(path, i), tensors) for i, value in enumerate(tree)]
    if type(tree) is tuple:
        return {_TUPLE: [_plain(value, _below(path, i), tensors) for i, value in enumerate(tree)]}
    if isinstance(tree, dict):
        return _mapping(tree, path, tensors)
    raise CheckpointError(
        f"{path or 'the state'} is a {type(tree).__name__}, which no checkpoint can hold; use tensors,"
        " numbers, strings, lists, tuples and dictionaries"
    )


def _mapping(tree: dict[Any, Any], path: str, tensors: dict[str, Tensor]) -> Tree:
    if all(isinstance(key, str) and not key.startswith("$") for key in tree):
        return {key: _plain(value, _below(path, key), tensors) for key, value in tree.items()}
    items = [
        [_plain(key, path, tensors), _plain(value, _below(path, i), tensors)]
        for i, (key, value) in enumerate(tree.items())
    ]
    return {_ITEMS: items}


def _named(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> Tree:
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
    permuted = tensor.detach().permute(order)
    if permuted.is_contiguous() and order != sorted(order):
        tensors[path] = permuted
        return {_TENSOR: path, "order": order}
    tensors[path] = tensor.detach().contiguous()
    return {_TENSOR: path}


def _below(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def unflatten(plain: Tree, tensors: dict[str, Tensor]) -> Tree:
    """The tree that :func:`flatten` took apart.

    Raises:
        CheckpointError: a tensor is missing.
    """
    if isinstance(plain, list):
        return [unflatten(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        return _tensor(plain, tensors)
    if _COMPLEX in plain:
        parts = _tensor(plain[_COMPLEX], tensors)
        return torch.complex(parts[..., 0], parts[..., 1])
    if _TUPLE in plain:
        return tuple([unflatten(value, tensors) for value in plain[_TUPLE]])
    if _ITEMS in plain:
        return {unflatten(key, tensors): unflatten(value, tensors) for key, value in plain[_ITEMS]}
    return {key: unflatten(value, tensors) for key, value in plain.items()}


def _tensor(plain: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    name = plain[_TENSOR]
    if name not in tensors:
        raise CheckpointError(f"its tensor {name!r} is missing")
    order = plain.get("order")
    if order is None:
        return tensors[name]
    return tensors[name].permute(sorted(range(len(order)), key=order.__getitem__))

"""A graph of operations without those that change nothing, or that are there already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from .aliases import Changes
from .tags import is_random

__all__ = ["simplify"]

_ATEN = torch.ops.aten


def simplify(graph: fx.Graph) -> None:
    """Take out, in place, what leaves every number of every output as it is, bit for bit.

    A copy into another order in memory stays. Tensors that are changed in place are left alone:
    there a copy is not its original.
    """
    changes = Changes(graph)
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or changes.touch(node):
            continue
        same = _same_as(node)
        if same is None and not is_random(node):
            same = seen.setdefault(_key(node), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _same_as(node: fx.Node) -> fx.Node | None:
    """The input that a node returns as it is."""
    is_identity = _IDENTITIES.get(node.target)
    source = node.args[0] if node.args else None
    if is_identity is None or not isinstance(source, fx.Node):
        return None
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return None
    return source if _layout(before) == _layout(after) and is_identity(node) else None


def _layout(tensor: Tensor) -> Any:
    """What an operation may ask of a tensor beside its numbers: a view asks for strides."""
    return tensor.dtype, tensor.shape, tensor.stride()


def _by(number: float) -> Callable[[fx.Node], bool]:
    def is_by(node: fx.Node) -> bool:
        other = node.args[1]
        return isinstance(other, int | float) and other == number

    return is_by


_ALWAYS: Callable[[fx.Node], bool] = lambda node: True  # noqa: E731
_IDENTITIES: dict[Any, Callable[[fx.Node], bool]] = {
    _ATEN.detach.default: _ALWAYS,
    _ATEN.alias.default: _ALWAYS,
    _ATEN.clone.default: _ALWAYS,
    _ATEN._to_copy.default: _ALWAYS,
    _ATEN.view.default: _ALWAYS,
    _ATEN.expand.default: _ALWAYS,
    _ATEN.mul.Tensor: _by(1),
    _ATEN.mul.Scalar: _by(1),
    _ATEN.div.Tensor: _by(1),
    _ATEN.pow.Tensor_Scalar: _by(1),
}


def _key(node: fx.Node) -> Any:
    return node.target, _hashable(node.args), _hashable(node.kwargs)


def _hashable(value: Any) -> Any:
    """A value by which two that are equal, and of one type, have the same operation done."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((name, _hashable(part)) for name, part in value.items())
    return type(value), value if isinstance(value, fx.Node) else repr(value)

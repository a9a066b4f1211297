"""Which tensors of a graph are changed in place."""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import fx

__all__ = ["Changes", "is_functional", "writes"]

_UNDECLARED = {torch.ops.aten.native_batch_norm.default: slice(3, 5)}
"""What an operation writes though it does not say so: the running averages."""


class Changes:
    """What a graph changes in place, seen through all views of it.

    Args:
        graph: The graph.
    """

    def __init__(self, graph: fx.Graph) -> None:
        calls = [node for node in graph.nodes if node.op == "call_function"]
        self._changed = {_root(part) for node in calls for part in _written(node)}

    def have(self, node: fx.Node) -> bool:
        """Whether a node is changed at some time, or is a view of what is."""
        return _root(node) in self._changed

    def touch(self, node: fx.Node) -> bool:
        """Whether a node, or what it reads, is changed at some time."""
        return any(_root(part) in self._changed for part in (node, *node.all_input_nodes))


def is_functional(graph: fx.Graph) -> bool:
    """Whether a graph changes its inputs alone, each by a copy into it that nothing reads."""
    changed: set[fx.Node] = set()
    for node in graph.nodes:
        if any(_root(part) in changed for part in node.all_input_nodes):
            return False
        written = _written(node) if node.op == "call_function" else []
        if written:
            place = written[0]
            if node.target is not torch.ops.aten.copy_.default or place.op != "placeholder":
                return False
            changed.add(place)
    return True


def writes(node: fx.Node) -> bool:
    """Whether an operation changes something in place."""
    return bool(_written(node))


def _written(node: fx.Node) -> list[fx.Node]:
    """What an operation writes; all that it is given where it does not say."""
    if node.target is getitem:
        return []
    target: Any = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        return node.all_input_nodes
    if target in _UNDECLARED:
        return [value for value in node.args[_UNDECLARED[target]] if isinstance(value, fx.Node)]
    given = [*zip(schema.arguments, node.args, strict=False)]
    given += [(a, node.kwargs[a.name]) for a in schema.arguments if a.name in node.kwargs]
    written = [value for a, value in given if a.alias_info and a.alias_info.is_write]
    return [value for value in written if isinstance(value, fx.Node)]


def _root(node: fx.Node) -> fx.Node:
    """What a view is a view of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        schema: Any = getattr(node.target, "_schema", None)
        is_view = schema is not None and schema.arguments[0].alias_info is not None
        if not is_view and node.target is not getitem:
            break
        node = node.args[0]
    return node

"""Outputs of a graph that say nothing new: constants, what is there twice, and minus another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from .aliases import Changes
from .tags import is_random

__all__ = ["Reading", "leave_out_what_follows"]

_NEG = torch.ops.aten.neg.default


class Reading(NamedTuple):
    """How a tensor is read from those that a graph returns.

    Args:
        place: Which of them it is.
        is_minus: Whether it is minus that.
        constant: What it always is, in place of one of them.
    """

    place: int = 0
    is_minus: bool = False
    constant: Tensor | None = None

    def of(self, at: Callable[[int], Tensor]) -> Tensor:
        """The tensor.

        Args:
            at: The tensor that the graph returns at a place.
        """
        if self.constant is not None:
            return self.constant.clone()
        return -at(self.place) if self.is_minus else at(self.place)


def leave_out_what_follows(graph: fx.Graph, first: int) -> list[Reading]:
    """Make a graph return, in place, no tensor that follows from the others.

    Args:
        graph: The graph.
        first: How many of its outputs are to stay as they are, whatever they are.

    Returns:
        How the other outputs are read from those of them that it still returns.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    every: Any = output.args[0]
    own, changes = every[first:], Changes(graph)
    constants = _constants(graph, changes)
    negated = {n: n.args[0] for n in own if _is_minus_one_of(n, own) and not changes.touch(n)}
    kept = list(dict.fromkeys(n for n in own if n not in constants and n not in negated))
    places = {node: place for place, node in enumerate(kept)}
    output.args = ((*every[:first], *kept),)
    return [
        Reading(constant=_value(node))
        if node in constants
        else Reading(places[negated.get(node, node)], node in negated)
        for node in own
    ]


def _is_minus_one_of(node: fx.Node, others: Sequence[fx.Node]) -> bool:
    other: Any = node.args[0] if node.target is _NEG else None
    return other in others and other.target is not _NEG


def _constants(graph: fx.Graph, changes: Changes) -> set[fx.Node]:
    """What depends on no input and no draw, and is changed by nothing."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        is_call = node.op == "call_function" and not is_random(node) and not changes.touch(node)
        if node.op == "get_attr" or (is_call and _are_in(node.all_input_nodes, found)):
            found.add(node)
    return found


def _are_in(nodes: Iterable[fx.Node], found: set[fx.Node]) -> bool:
    return all(node in found for node in nodes)


def _value(node: fx.Node) -> Any:
    target: Any = node.target
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, target)
    return target(*map_arg(node.args, _value), **map_arg(node.kwargs, _value))

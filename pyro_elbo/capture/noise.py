"""The random numbers of a graph that depend on nothing, drawn before it, and given to it as inputs.

They are drawn by the same calls in the same order as in eager, so that a seed means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .private import is_random

__all__ = ["Noise", "take_noise_out"]

_ATEN = torch.ops.aten
_EMPTY = (_ATEN.empty.memory_format, _ATEN.empty_like.default, _ATEN.new_empty.default)
_FILLS: dict[Any, Callable[..., Any]] = {
    _ATEN.normal_.default: Tensor.normal_,
    _ATEN.uniform_.default: Tensor.uniform_,
    _ATEN.exponential_.default: Tensor.exponential_,
    _ATEN.bernoulli_.float: Tensor.bernoulli_,
}


class Noise:
    """Draws what a graph wants.

    Args:
        draws: For each input how it is filled, in order.
        inputs: The inputs.
    """

    def __init__(self, draws: Sequence[Callable[[], Any]], inputs: Sequence[Tensor]) -> None:
        self._draws, self.inputs = list(draws), list(inputs)

    def draw(self) -> None:
        """Fill every input anew."""
        for draw in self._draws:
            draw()


def take_noise_out(graph: fx.Graph) -> Noise:
    """Turn the first draws of a graph into inputs, up to one that depends on a computed value."""
    draws: list[Callable[[], Any]] = []
    inputs: list[Tensor] = []
    last = _last_placeholder(graph)
    for node in [node for node in graph.nodes if is_random(node)]:
        drawn = _draw(node)
        if drawn is None:
            break
        value, draw = drawn
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(inputs)}")
        last.meta["val"] = value
        with graph.inserting_before(node):
            copy = graph.call_function(_ATEN.clone.default, (last,))
        node.replace_all_uses_with(copy)
        graph.erase_node(node)
        draws.append(draw)
        inputs.append(value)
    return Noise(draws, inputs)


def _last_placeholder(graph: fx.Graph) -> fx.Node:
    return [node for node in graph.nodes if node.op == "placeholder"][-1]


def _draw(node: fx.Node) -> tuple[Tensor, Callable[[], Any]] | None:
    """A tensor for what a node draws, and what fills it; ``None`` where it needs the graph."""
    like = node.meta.get("val")
    if not isinstance(like, Tensor):
        return None
    value = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    if node.target in _FILLS and _is_empty(node.args[0]) and not _has_nodes(node.args[1:]):
        fill, rest = _FILLS[node.target], node.args[1:]
        return value, lambda: fill(value, *rest)
    if node.target not in _FILLS and not _has_nodes(node.args):
        sample: Any = node.target
        args, kwargs = node.args, node.kwargs
        return value, lambda: value.copy_(sample(*args, **kwargs))
    return None


def _is_empty(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in _EMPTY and len(node.users) == 1


def _has_nodes(args: Any) -> bool:
    return any(isinstance(arg, fx.Node) for arg in args)

"""The random numbers of a graph that depend on nothing, drawn before it, and given to it as inputs.

They are drawn in the order of eager, and are the same numbers, so that a seed means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .permutation import FirstOfPermutation
from .tags import is_random

__all__ = ["Noise", "take_noise_out"]

_ATEN = torch.ops.aten
_EMPTY = (_ATEN.empty.memory_format, _ATEN.empty_like.default, _ATEN.new_empty.default)
_FILLS: dict[Any, Callable[..., Any]] = {
    _ATEN.normal_.default: Tensor.normal_,
    _ATEN.uniform_.default: Tensor.uniform_,
    _ATEN.exponential_.default: Tensor.exponential_,
    _ATEN.bernoulli_.float: Tensor.bernoulli_,
}
_PERMUTE = _ATEN.randperm.default
ONE_BY_ONE = 15
"""Up to so many normal numbers torch draws one by one, so that two draws are one of their sizes."""

Fill = Callable[[Tensor], Any]


class Noise:
    """Draws what a graph wants.

    Args:
        fills: For each input what fills it, in order.
        inputs: The inputs.
        is_all: Whether the graph draws nothing itself.
        num_fills: How many of them are those of one run; by default all.
    """

    def __init__(
        self,
        fills: Sequence[Fill],
        inputs: Sequence[Tensor],
        is_all: bool,
        num_fills: int | None = None,
    ) -> None:
        self._fills, self.inputs, self.is_all = list(fills), list(inputs), is_all
        self._num_fills = len(self._fills) if num_fills is None else num_fills

    def draw(self, runs: int | None = None) -> None:
        """Fill every input anew; or those of the first so many runs, where it is repeated."""
        count = None if runs is None else runs * self._num_fills
        for fill, value in zip(self._fills[:count], self.inputs[:count], strict=True):
            fill(value)

    def compile(self) -> None:
        """Draw by compiled code what it draws in less time, the same numbers, once it is there."""
        for fill in {id(fill): fill for fill in self._fills}.values():
            if isinstance(fill, FirstOfPermutation):
                fill.compile()

    def repeated(self, times: int) -> Noise:
        """The noise of so many runs of the graph, one after the other."""
        if times == 1:
            return self
        inputs = [torch.empty_like(value) for _ in range(times) for value in self.inputs]
        return Noise(self._fills * times, inputs, self.is_all, self._num_fills)


class _Draw(NamedTuple):
    """What one operation draws.

    Args:
        node: The operation.
        value: A tensor for it.
        fill: What fills one.
        kind: What draws of its kind have in common, where several can be one.
    """

    node: fx.Node
    value: Tensor
    fill: Fill
    kind: Any = None


def take_noise_out(graph: fx.Graph) -> Noise:
    """Turn the first draws of a graph into inputs, up to one that depends on a computed value."""
    nodes = [node for node in graph.nodes if is_random(node)]
    draws = list(takewhile(lambda draw: draw is not None, map(_draw, nodes)))
    last = next((node for node in reversed(graph.nodes) if node.op == "placeholder"), graph._root)
    fills: list[Fill] = []
    inputs: list[Tensor] = []
    for together in _together([draw for draw in draws if draw is not None]):
        with graph.inserting_after(last):
            last = graph.placeholder(f"noise_{len(inputs)}")
        first = together[0]
        value = first.value if len(together) == 1 else _joined(together)
        last.meta["val"] = value
        start = 0
        for node, part, _, _ in together:
            with graph.inserting_before(node):
                drawn = last if len(together) == 1 else _part(graph, last, start, part)
                copy = _copied(graph, drawn, node, first.value.dtype)
            start += part.numel()
            node.replace_all_uses_with(copy)
            graph.erase_node(node)
        fills.append(first.fill)
        inputs.append(value)
    return Noise(fills, inputs, len(draws) == len(nodes))


def _together(draws: Sequence[_Draw]) -> Iterator[list[_Draw]]:
    """The draws, those in one list that are one draw of their sizes."""
    group: list[_Draw] = []
    for draw in draws:
        total = draw.value.numel() + sum(other.value.numel() for other in group)
        if group and (draw.kind is None or draw.kind != group[0].kind or total > ONE_BY_ONE):
            yield group
            group = []
        group.append(draw)
    if group:
        yield group


def _joined(draws: Sequence[_Draw]) -> Tensor:
    return draws[0].value.new_empty(sum(draw.value.numel() for draw in draws))


def _part(graph: fx.Graph, joined: fx.Node, start: int, like: Tensor) -> fx.Node:
    part = graph.call_function(_ATEN.slice.Tensor, (joined, 0, start, start + like.numel()))
    return graph.call_function(_ATEN.view.default, (part, list(like.shape)))


def _copied(graph: fx.Graph, drawn: fx.Node, like: fx.Node, dtype: torch.dtype) -> fx.Node:
    wanted = like.meta["val"].dtype
    if wanted == dtype:
        return graph.call_function(_ATEN.clone.default, (drawn,))
    return graph.call_function(_ATEN._to_copy.default, (drawn,), {"dtype": wanted})


def _draw(node: fx.Node) -> _Draw | None:
    """What a node draws; ``None`` where it needs the graph."""
    like = node.meta.get("val")
    if not isinstance(like, Tensor):
        return None
    value = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
    if node.target in _FILLS and _is_empty(node.args[0]) and not _has_nodes(node.args[1:]):
        method, rest = _FILLS[node.target], node.args[1:]
        is_serial = method is Tensor.normal_ and value.is_contiguous() and like.device.type == "cpu"
        kind = (like.dtype, rest) if is_serial and value.numel() <= ONE_BY_ONE else None
        return _Draw(node, value, lambda tensor: method(tensor, *rest), kind)
    is_of_numbers = like.dtype == torch.int64 and not _has_nodes(node.args)
    if node.target is _PERMUTE and is_of_numbers and like.device.type == "cpu":
        whole = value.to(torch.int32)  # the same numbers, in less memory
        count = _num_taken(node, len(whole))
        return _Draw(node, whole[:count], FirstOfPermutation(whole, count))
    if node.target not in _FILLS and not _has_nodes(node.args):
        sample: Any = node.target
        args, kwargs = node.args, node.kwargs
        return _Draw(node, value, lambda tensor: tensor.copy_(sample(*args, **kwargs)))
    return None


def _num_taken(node: fx.Node, size: int) -> int:
    """How many entries of a vector are looked at, from the first on."""
    return max((_end(user, size) for user in node.users), default=size)


def _end(user: fx.Node, size: int) -> int:
    args: Any = user.args
    if user.target is not _ATEN.slice.Tensor or len(args) < 4:
        return size
    _, _, start, end = args[:4]
    return end if start >= 0 and 0 <= end < size else size


def _is_empty(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in _EMPTY and len(node.users) == 1


def _has_nodes(args: Any) -> bool:
    return any(isinstance(arg, fx.Node) for arg in args)

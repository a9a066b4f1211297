"""What the operations of a graph are: which can be done at once, and which give parts alone."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from .aliases import Changes, writes
from .shapes import is_plain, values_of
from .tags import is_random

__all__ = ["SUMS", "Kinds"]

LARGEST = 1024
"""The entries of the largest tensor that is copied to be joined with others."""

LONGEST = 6
"""The terms of the longest chain of additions that is left as it is."""

_ATEN = torch.ops.aten
SUMS = {_ATEN.sum.default, _ATEN.sum.dim_IntList}
_EXPAND = _ATEN.expand.default
_ENTRYWISE = {_ATEN.softplus_backward.default, _ATEN._to_copy.default, _EXPAND}
"""Each entry of the result comes from one of each input; torch does not tag these as such."""

_COPIES = {_ATEN.clone.default, _ATEN.lift_fresh_copy.default, _ATEN._to_copy.default, *SUMS}
_COPIES |= {_ATEN._unsafe_view.default}
"""Those that may give the very entries of their input."""

_SPLITS = {_ATEN.unbind.int: 1, _ATEN.split.Tensor: 2, _ATEN.split_with_sizes.default: 2}
"""Where each is told the dimension."""

_MAKE = {_ATEN.full.default, _ATEN.zeros.default, _ATEN.ones.default, _ATEN.scalar_tensor.default}
_MAKE_LIKE = {_ATEN.full_like.default, _ATEN.zeros_like.default, _ATEN.ones_like.default}
_MAKE_LIKE |= {_ATEN.new_zeros.default, _ATEN.new_ones.default, _ATEN.new_full.default}


class Kinds:
    """What is known of the operations of a graph.

    Args:
        module: The graph.
        inputs: Tensors like those of its inputs.

    The attributes: ``values``, for each node a tensor without numbers; ``known``, the numbers of
    small tensors that depend on no input; ``sections``, the operations between those whose order
    counts, and each of these by itself; ``chains``, the terms of long chains of additions, by the
    last operation of each.
    """

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        self._changes = Changes(module.graph)
        self._part_of: dict[fx.Node, tuple[fx.Node, int] | None] = {}
        self.values = values_of(module, inputs)
        self.known = self._known(module)
        calls = [n for n in module.graph.nodes if n.op == "call_function" and n not in self.known]
        self.sections = [*_sections(calls)]
        self.chains: dict[fx.Node, list[fx.Node]] = {}
        self._find_chains()

    def inputs(self, node: fx.Node) -> Sequence[fx.Node]:
        """What an operation reads, or a chain of them."""
        return self.chains.get(node) or node.all_input_nodes

    def are_changed(self, node: fx.Node) -> bool:
        """Whether a node, or what it reads, is changed in place."""
        return self._changes.touch(node)

    def key(self, node: fx.Node) -> Hashable:
        """What operations have in common that can be done at once; ``None`` for other ones."""
        if node in self.chains or not (_is_entrywise(node) or node.target in SUMS):
            return None
        given = [argument for argument in node.args if isinstance(argument, fx.Node)]
        tensors = [self.values[argument] for argument in given]
        if not given or not self._is_movable(node) or not all(map(_is_small, tensors)):
            return None
        if any(map(self._is_read_late, given)):
            return None
        dtypes = {tensor.dtype for tensor in tensors[node.target is _ATEN.where.self :]}
        if len(dtypes) != 1 or {*node.all_input_nodes} != {*given}:
            return None  # a tensor without dimensions has no say in the dtype; a row would have
        if node.target in SUMS and not tensors[0].dim():
            return None  # no dimension to sum over would mean all
        described = tuple(map(self._described, node.args))
        return node.target, described, repr(node.kwargs), tuple(self.values[node].shape)

    def _is_movable(self, node: fx.Node) -> bool:
        """Whether what a node gives is small, and may lie one row after the other, in order."""
        value = self.values[node]
        is_in_order = _is_small(value) and (value.is_contiguous() or node.target is _EXPAND)
        return is_in_order and not self._changes.have(node)

    def _is_read_late(self, node: fx.Node) -> bool:
        """Whether a vector of a node's entries would be a copy of what is changed later."""
        return self._changes.have(node) and not self.values[node].is_contiguous()

    def part_of(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """The node whose entries from a place on, in order, are those of another; if so."""
        if node not in self._part_of:
            self._part_of[node] = self._found_part_of(node)
        return self._part_of[node]

    def _found_part_of(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or node.all_input_nodes != [source]:
            return None
        before, after = self.values[source], self.values[node]
        if node.target is getitem and _splits(source):
            number: Any = node.args[1]
            whole = source.all_input_nodes[0]
            is_in_order = _are_in_order(self.values[whole], after)
            start = sum(part.numel() for part in before[:number])
            return (whole, start) if is_in_order else None
        if not _are_in_order(before, after) or before.dtype != after.dtype:
            return None
        if node.target in _COPIES:
            is_same = before.numel() == after.numel() and not self.are_changed(node)
            return (source, 0) if is_same else None
        if not _is_view(node):
            return None
        target: Any = node.target
        fresh = torch.empty(before.shape, dtype=before.dtype, device="meta")
        view = target(fresh, *node.args[1:], **node.kwargs)
        return None if view.is_neg() else (source, view.storage_offset())

    def _described(self, argument: Any) -> Hashable:
        if isinstance(argument, fx.Node):
            return self.values[argument].dtype, tuple(self.values[argument].shape)
        return type(argument), repr(argument)

    def _known(self, module: fx.GraphModule) -> dict[fx.Node, Tensor]:
        known: dict[fx.Node, Tensor] = {}
        for node in module.graph.nodes:
            value = self.values.get(node)
            if _is_small(value) and _are_in_order(value) and not self.are_changed(node):
                numbers = self._numbers(node, module, known)
                if numbers is not None:
                    known[node] = numbers.detach().contiguous()
        return known

    def _numbers(
        self, node: fx.Node, module: fx.GraphModule, known: Mapping[fx.Node, Tensor]
    ) -> Tensor | None:
        target: Any = node.target
        if node.op == "get_attr":
            attribute: Tensor = getattr(module, target)
            return attribute
        if node.op != "call_function" or is_random(node):
            return None
        args: Any = node.args
        if target in _MAKE_LIKE:
            like = torch.empty(self.values[node].shape, dtype=self.values[args[0]].dtype)
            args = (like, *args[1:])
        elif target not in _MAKE and not _are_all_in(node.all_input_nodes, known):
            return None
        numbers: Tensor = target(*map_arg(args, known.get), **map_arg(node.kwargs, known.get))
        return numbers

    def _find_chains(self) -> None:
        """Take the operations of long chains out of the sections, but for the last of each."""
        for place, section in enumerate(self.sections):
            own, within = set(section), set[fx.Node]()
            for node in reversed(section):
                if node in within or not self._is_addition(node):
                    continue
                terms, links = self._chain(node, own)
                if len(terms) > LONGEST:
                    self.chains[node] = terms
                    within |= links
            self.sections[place] = [node for node in section if node not in within]

    def _chain(self, last: fx.Node, own: set[fx.Node]) -> tuple[list[fx.Node], set[fx.Node]]:
        """The terms of a chain, and the operations in it before the last."""
        terms, links = [], set[fx.Node]()
        left = [*reversed(last.all_input_nodes)]
        while left:
            node = left.pop()
            if node in own and len(node.users) == 1 and self._is_addition(node):
                links.add(node)
                left += reversed(node.all_input_nodes)
            else:
                terms.append(node)
        return terms, links

    def _is_addition(self, node: fx.Node) -> bool:
        """Whether a node adds two tensors like its result, which are not one and the same."""
        if node.target is not _ATEN.add.Tensor or node.kwargs or len(node.all_input_nodes) != 2:
            return False
        own, *given = (self.values[n] for n in (node, *node.all_input_nodes))
        are_alike = all(t.shape == own.shape and t.dtype == own.dtype for t in given)
        is_late = any(map(self._is_read_late, node.all_input_nodes))
        is_sum = own.is_floating_point() and are_alike and not is_late
        return is_sum and self._is_movable(node)


def _are_in_order(*values: Any) -> bool:
    return all(is_plain(value) and value.is_contiguous() for value in values)


def _is_small(value: Any) -> bool:
    return is_plain(value) and value.numel() <= LARGEST


def _are_all_in(nodes: Sequence[fx.Node], known: Mapping[fx.Node, Tensor]) -> bool:
    return bool(nodes) and all(node in known for node in nodes)


def _is_entrywise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    is_pure = not is_random(node) and not writes(node)
    return is_pure and (torch.Tag.pointwise in tags or node.target in _ENTRYWISE)


def _is_view(node: fx.Node) -> bool:
    return getattr(node.target, "is_view", False) and not writes(node)


def _splits(node: fx.Node) -> bool:
    """Whether an operation gives the parts of a tensor, one after the other."""
    target: Any = node.target
    first = _SPLITS.get(target)
    return first is not None and not node.kwargs and node.args[first:] in ((), (0,))


def _sections(calls: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
    section: list[fx.Node] = []
    for node in calls:
        if is_random(node) or writes(node):
            yield section
            yield [node]
            section = []
        else:
            section.append(node)
    yield section

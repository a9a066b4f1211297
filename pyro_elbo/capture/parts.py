"""Small tensors of a graph as parts of long vectors, and many of them put together again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

__all__ = ["Part", "Pool"]

_ATEN = torch.ops.aten
MOST_COPIED = 2**14
"""The most entries that are put one after the other for some of them to be picked."""


class Part(NamedTuple):
    """The entries of a tensor, in order, within a vector.

    Args:
        source: The vector: a node of the graph, or known numbers.
        start: Where they begin in it.
        size: How many there are.
    """

    source: fx.Node | Tensor
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where they end."""
        return self.start + self.size

    @property
    def numbers(self) -> Tensor | None:
        """The entries, where they are known."""
        return self.source[self.start : self.end] if isinstance(self.source, Tensor) else None

    def precedes(self, other: Part) -> bool:
        """Whether another begins in the same vector where this one ends."""
        return self.source is other.source and self.end == other.start


class Plan(NamedTuple):
    """How parts are put together.

    Args:
        num_operations: What that takes, roughly.
        make: Writes it; the result is a vector.
    """

    num_operations: int
    make: Callable[[], fx.Node]


class Pool:
    """Writes into a graph what puts parts together.

    Args:
        graph: The graph.

    Its attribute ``constants`` has the known numbers that the graph reads, by their names.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.constants: dict[str, Tensor] = {}
        self._graph = graph
        self._made: dict[Hashable, fx.Node] = {}
        self._whole: dict[fx.Node, tuple[fx.Node, list[int]]] = {}

    def forget(self) -> None:
        """Put together anew what is asked for from here on, where memory may have changed."""
        self._made.clear()

    def constant(self, value: Tensor) -> fx.Node:
        """Known numbers."""
        if not _is_one_number(value):
            name = f"_known_{len(self.constants)}"
            self.constants[name] = value
            return self._graph.get_attr(name)
        args = list(value.shape), value.reshape(-1)[0].item()
        return self._graph.call_function(_ATEN.full.default, args, {"dtype": value.dtype})

    def vector(self, node: fx.Node, shape: Sequence[int]) -> fx.Node:
        """The entries of a tensor of the graph, in order."""
        flat = node if len(shape) == 1 else self._call(_ATEN.reshape.default, node, [-1])
        self._whole.setdefault(flat, (node, list(shape)))
        return flat

    def shaped(self, vector: fx.Node, shape: Sequence[int]) -> fx.Node:
        """A vector's entries in a shape."""
        node, own = self._whole.get(vector, (vector, None))
        if own == shape:
            return node
        return vector if len(shape) == 1 else self._call(_ATEN.reshape.default, vector, list(shape))

    def tensor(self, part: Part, shape: Sequence[int]) -> fx.Node:
        """A part, shaped."""
        numbers = part.numbers
        if numbers is not None:
            return self.constant(numbers.reshape(list(shape)))
        if not shape and self._length(part.source) != 1:
            return self._call(_ATEN.select.int, part.source, 0, part.start)
        return self.shaped(self._slice(part), shape)

    def plan(self, parts: Sequence[Part]) -> Plan:
        """How to make one vector of parts, one after the other."""
        key = tuple((id(part.source), part.start, part.size) for part in parts)
        if key in self._made:
            return Plan(0, lambda: self._made[key])
        cost, make = self._new(parts)

        def once() -> fx.Node:
            if key not in self._made:
                self._made[key] = vector = make()
                self._whole.setdefault(vector, (vector, [sum(part.size for part in parts)]))
            return self._made[key]

        return Plan(cost, once)

    def _new(self, parts: Sequence[Part]) -> tuple[int, Callable[[], fx.Node]]:
        known = _known(parts)
        if len(known) == len(parts):
            return 0, lambda: self.constant(torch.cat(known))
        step = _step(parts)
        if step:
            first, last = parts[0], parts[-1]
            return 1, lambda: self._call(
                _ATEN.slice.Tensor, first.source, 0, first.start, last.end, step
            )
        runs = _runs(_with_joined_constants(parts))
        if len(runs) == 1:
            return 0, lambda: self._slice(runs[0])
        extents = _extents(runs)
        is_copied = len(extents) > 1 and sum(extent.size for extent in extents) > MOST_COPIED
        if is_copied or len(runs) <= len(extents) + 1:
            return len(runs), lambda: self._joined(runs)
        return len(extents) + 1, lambda: self._picked(runs, extents)

    def _joined(self, runs: Sequence[Part]) -> fx.Node:
        return self._call(_ATEN.cat.default, [self._slice(run) for run in runs])

    def _picked(self, runs: Sequence[Part], extents: Sequence[Part]) -> fx.Node:
        """The entries of runs, out of the extents of their sources."""
        before, starts = 0, {}
        for extent in extents:
            starts[id(extent.source)] = before - extent.start
            before += extent.size
        indices = [torch.arange(run.start, run.end) + starts[id(run.source)] for run in runs]
        pool = self._joined(extents) if len(extents) > 1 else self._slice(extents[0])
        return self._call(_ATEN.index.Tensor, pool, [self.constant(torch.cat(indices))])

    def _slice(self, part: Part) -> fx.Node:
        numbers = part.numbers
        if numbers is not None:
            return self.constant(numbers)
        if isinstance(part.source, fx.Node) and part.size == self._length(part.source):
            return part.source
        return self._call(_ATEN.slice.Tensor, part.source, 0, part.start, part.end)

    def _length(self, source: Any) -> int:
        return prod(self._whole[source][1]) if source in self._whole else -1

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self._graph.call_function(target, args)


def _is_one_number(value: Tensor) -> bool:
    if not value.numel():
        return False
    flat = value.reshape(-1)
    return bool((flat == flat[0]).all() and (flat.signbit() == flat[0].signbit()).all())


def _step(parts: Sequence[Part]) -> int:
    """The distance of single entries of one vector, where it is the same for all, and no 1."""
    steps = {b.start - a.start for a, b in pairwise(parts)}
    if len(steps) != 1 or any(p.size != 1 or p.source is not parts[0].source for p in parts):
        return 0
    (step,) = steps
    return step if step > 1 else 0


def _with_joined_constants(parts: Sequence[Part]) -> list[Part]:
    """The same, with all known numbers in one vector."""
    known = _known(parts)
    if not known:
        return list(parts)
    vector = torch.cat(known)
    before, found = 0, []
    for part in parts:
        if part.numbers is not None:
            part = Part(vector, before, part.size)
            before = part.end
        found.append(part)
    return found


def _known(parts: Sequence[Part]) -> list[Tensor]:
    return [part.numbers for part in parts if part.numbers is not None]


def _runs(parts: Sequence[Part]) -> list[Part]:
    """Parts that follow one another, as one."""
    runs = [parts[0]]
    for part in parts[1:]:
        if runs[-1].precedes(part):
            runs[-1] = runs[-1]._replace(size=runs[-1].size + part.size)
        else:
            runs.append(part)
    return runs


def _extents(runs: Sequence[Part]) -> list[Part]:
    """From the first to the last entry that is taken of each source."""
    extents: dict[int, Part] = {}
    for run in runs:
        own = extents.get(id(run.source), run)
        start = min(own.start, run.start)
        extents[id(run.source)] = Part(run.source, start, max(own.end, run.end) - start)
    return list(extents.values())

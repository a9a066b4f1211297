"""Small operations of one kind, done at once: a graph that is quicker to compile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator
from torch.fx.node import map_arg

from .kinds import SUMS, Kinds
from .parts import Part, Pool

__all__ = ["merged"]

_ATEN = torch.ops.aten
_JOINS = {_ATEN.cat.default, _ATEN.stack.default}
_NEED_STRIDES = {_ATEN.as_strided.default, _ATEN.as_strided_scatter.default}
WORTH = 2
"""How many operations are to go for each that is added."""


def merged(module: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Another graph that computes the same, up to rounding, in fewer operations.

    Operations of one kind on tensors of one shape that do not depend on one another are done as one
    operation on their stack; a long chain of additions becomes one sum; what depends on no input
    is computed here. Graphs on another device, or that ask how tensors lie in memory, are
    copied.

    Args:
        module: The graph, without gradients.
        inputs: Tensors like those of its inputs.
    """
    if any(map(_is_left_alone, module.graph.nodes)) or any(t.device.type != "cpu" for t in inputs):
        return fx.GraphModule(module, deepcopy(module.graph))
    return _Writer(module, Kinds(module, inputs)).written()


def _is_left_alone(node: fx.Node) -> bool:
    """Whether an operation asks how a tensor lies in memory, or runs another graph."""
    is_graph = isinstance(node.target, HigherOrderOperator) or node.op == "call_module"
    return is_graph or node.target in _NEED_STRIDES


class _Stack(NamedTuple):
    """Tensors of one shape to be put together; one row where all are the same.

    Args:
        num_operations: How many operations it takes, roughly.
        make: Writes it; the result is a vector.
        shape: The shape of the stack.
        dtype: Its dtype.
    """

    num_operations: int
    make: Callable[[], fx.Node]
    shape: list[int]
    dtype: torch.dtype


def _on_stacks(node: fx.Node, given: Sequence[Any], shape: list[int]) -> tuple[Any, Sequence[Any]]:
    """The operation, and its arguments, that does to stacks what another does to single tensors.

    Args:
        node: The other.
        given: Its arguments, with stacks for tensors.
        shape: The shape of the results' stack.
    """
    if node.target is _ATEN.expand.default:
        return node.target, [given[0], shape, *given[2:]]
    if node.target not in SUMS:
        return node.target, given
    rank = len(given[0].shape) - 1
    dims = given[1] if len(given) > 1 and given[1] else range(rank)
    return _ATEN.sum.dim_IntList, [given[0], [dim % rank + 1 for dim in dims], *given[2:]]


def _gives(
    dtype: torch.dtype, shape: list[int], target: Any, args: Sequence[Any], options: Any
) -> bool:
    """Whether an operation on stacks gives a stack of these."""
    tensors = [
        torch.empty(arg.shape, dtype=arg.dtype, device="meta") if isinstance(arg, _Stack) else arg
        for arg in args
    ]
    try:
        result = target(*tensors, **options)
    except (RuntimeError, TypeError):
        return False
    return bool(result.dtype == dtype and list(result.shape) == shape)


class _Writer:
    """Writes the new graph."""

    def __init__(self, module: fx.GraphModule, kinds: Kinds) -> None:
        self._module, self._kinds, self._new = module, kinds, fx.Graph()
        self._pool = Pool(self._new)
        self._nodes: dict[fx.Node, fx.Node] = {}
        self._parts = {n: Part(v.reshape(-1), 0, v.numel()) for n, v in kinds.known.items()}
        self._ordinals: dict[fx.Node, int] = {}
        self._own: set[fx.Node] = set()

    def written(self) -> fx.GraphModule:
        """The whole."""
        nodes = list(self._module.graph.nodes)
        for node in nodes:
            if node.op in ("placeholder", "get_attr"):
                self._nodes[node] = self._new.node_copy(node)
        for section in self._kinds.sections:
            self._pool.forget()
            for level in self._levels(section):
                self._write(level)
        self._new.output(map_arg(nodes[-1].args[0], self._output))
        self._new.eliminate_dead_code()
        names = [str(node.target) for node in self._new.nodes if node.op == "get_attr"]
        known = self._pool.constants
        tensors = {n: known[n] if n in known else getattr(self._module, n) for n in names}
        return fx.GraphModule(tensors, self._new)

    def _output(self, node: fx.Node) -> fx.Node:
        """A node, in memory of its own where it was: whoever takes it may write there."""
        is_own = node in self._own or node.op != "call_function"
        return self._node(node) if is_own else self._call(_ATEN.clone.default, self._node(node))

    def _levels(self, section: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
        """Nodes none of which depends on another of its list; views follow what they view."""
        depths: dict[fx.Node, int] = {}
        levels: dict[int, list[fx.Node]] = defaultdict(list)
        for node in section:
            depth = max((depths.get(n, 0) for n in self._kinds.inputs(node)), default=0)
            depths[node] = depth + (self._kinds.part_of(node) is None)
            levels[depths[node]].append(node)
        return (levels[depth] for depth in sorted(levels))

    def _write(self, level: Sequence[fx.Node]) -> None:
        groups: dict[Hashable, list[fx.Node]] = defaultdict(list)
        views = [node for node in level if self._kinds.part_of(node) is not None]
        for node in level:
            if self._kinds.part_of(node) is None:
                key = self._kinds.key(node)
                groups[node if key is None else key].append(node)
        for group in groups.values():
            if len(group) == 1 or not self._write_at_once(group):
                for node in group:
                    self._write_alone(node)
        for node in views:
            self._view(node)

    def _view(self, node: fx.Node) -> None:
        found = self._kinds.part_of(node)
        assert found is not None
        source, start = found
        whole = self._part(source)
        size = self._kinds.values[node].numel()
        self._parts[node] = Part(whole.source, whole.start + start, size)

    def _write_alone(self, node: fx.Node) -> None:
        if node in self._kinds.chains:
            self._nodes[node] = self._sum(self._kinds.chains[node], self._shape(node))
            self._own.add(node)
        elif node.target not in _JOINS or not self._is_joined(node):
            self._nodes[node] = self._new.node_copy(node, self._node)
            self._own.add(node)

    def _sum(self, terms: Sequence[fx.Node], shape: Sequence[int]) -> fx.Node:
        plan = self._pool.plan([self._part(term) for term in terms])
        if WORTH * plan.num_operations < len(terms):
            rows = self._pool.shaped(plan.make(), [len(terms), *shape])
            return self._call(_ATEN.sum.dim_IntList, rows, [0])
        total = self._node(terms[0])
        for term in terms[1:]:
            total = self._call(_ATEN.add.Tensor, total, self._node(term))
        return total

    def _is_joined(self, node: fx.Node) -> bool:
        """Write what puts tensors one after the other, where their entries lie together already."""
        tensors: Any = node.args[0]
        dtypes = {self._kinds.values[tensor].dtype for tensor in tensors}
        is_copy = not self._kinds.are_changed(node)
        if tuple(node.args[1:]) not in ((), (0,)) or len(dtypes) > 1 or not is_copy:
            return False
        plan = self._pool.plan([self._part(tensor) for tensor in tensors])
        if WORTH * plan.num_operations >= len(tensors):
            return False
        self._nodes[node] = self._pool.shaped(plan.make(), self._shape(node))
        return True

    def _write_at_once(self, group: list[fx.Node]) -> bool:
        """Write operations of one kind as one, where that is less work."""
        group.sort(key=self._place)
        first = group[0]
        given = [
            self._given([node.args[i] for node in group], first) for i in range(len(first.args))
        ]
        stacks = [stack for stack in given if isinstance(stack, _Stack)]
        if WORTH * sum(stack.num_operations for stack in stacks) >= len(group):
            return False
        shape = [max(stack.shape[0] for stack in stacks), *self._shape(first)]
        target, args = _on_stacks(first, given, shape)
        if not _gives(self._kinds.values[first].dtype, shape, target, args, first.kwargs):
            return False
        written = [self._rows(arg) if isinstance(arg, _Stack) else arg for arg in args]
        result = self._new.call_function(target, tuple(written), dict(first.kwargs))
        flat = self._pool.vector(result, shape)
        size = self._kinds.values[first].numel()
        for row, node in enumerate(group):
            self._parts[node] = Part(flat, row % shape[0] * size, size)
        return True

    def _given(self, arguments: Sequence[Any], node: fx.Node) -> Any:
        """What operations like one are given in one place: a stack, if these are tensors.

        It has as many dimensions as that of the results has.
        """
        argument = arguments[0]
        if not isinstance(argument, fx.Node):
            return argument
        parts = [self._part(argument) for argument in arguments]
        if len(set(parts)) == 1:
            parts = parts[:1]
        own = self._shape(argument)
        missing = 0 if node.target in SUMS else len(self._shape(node)) - len(own)
        shape = [len(parts), *[1] * missing, *own]
        return _Stack(*self._pool.plan(parts), shape, self._kinds.values[argument].dtype)

    def _rows(self, stack: _Stack) -> fx.Node:
        return self._pool.shaped(stack.make(), stack.shape)

    def _place(self, node: fx.Node) -> tuple[int, int]:
        """Where the first of its inputs lies: in this order stacks are there already, mostly."""
        for part in map(self._part, node.all_input_nodes):
            if isinstance(part.source, fx.Node):
                return self._ordinals.setdefault(part.source, len(self._ordinals)), part.start
        return -1, 0

    def _part(self, node: fx.Node) -> Part:
        if node not in self._parts:
            value, own = self._kinds.values[node], self._nodes[node]
            flat = self._pool.vector(own, self._shape(node))
            self._parts[node] = Part(flat, 0, value.numel())
        return self._parts[node]

    def _node(self, node: fx.Node) -> fx.Node:
        if node not in self._nodes:
            self._nodes[node] = self._pool.tensor(self._parts[node], self._shape(node))
        return self._nodes[node]

    def _shape(self, node: Any) -> list[int]:
        return [*self._kinds.values[node].shape]

    def _call(self, target: Any, *args: Any) -> fx.Node:
        return self._new.call_function(target, args)

"""A whole training step as one graph: the loss, its terms, its gradients, and what moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from .evaluation import Captured
from .flat import FlatGroup, FlatParameters
from .outputs import Reading
from .private import trace_operations
from .shapes import unfilled
from .tape import Outputs

__all__ = ["StepGraph", "step_graph"]

_ATEN = torch.ops.aten


class _Place(NamedTuple):
    """Where a tensor lies in the outputs."""

    output: int
    start: int
    shape: torch.Size


class StepGraph(NamedTuple):
    """A graph of one step or several, and how its outputs are read.

    It takes the numbers (for each step the weights, then those of each group's update), for each
    group its vector and its states, the noise of each step, what it reads, and the arguments. It
    moves the vectors and states in place, up to a step in which something is not finite, and
    returns for each group that is moved outside its gradient; then one vector for each dtype, of
    which the first begins with the objective, and whether all was finite. Of several steps these
    vectors are joined.

    Args:
        graph: The graph.
        num_gradients: How many gradients it returns.
        places: Where the tensors are that those of the terms are read from.
        readings: How they are read.
        num_steps: How many steps it takes.
    """

    graph: fx.GraphModule
    num_gradients: int
    places: Sequence[_Place]
    readings: Sequence[Reading]
    num_steps: int

    def steps(self, outputs: Outputs) -> list[Outputs]:
        """The outputs of each step."""
        if self.num_steps == 1:
            return [outputs]
        rows = [torch.as_tensor(vector).view(self.num_steps, -1) for vector in outputs]
        return [[row[step] for row in rows] for step in range(self.num_steps)]

    def tensors(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the terms of one step, and last their totals."""
        return [self._read(reading, outputs) for reading in self.readings]

    def totals(self, outputs: Sequence[Tensor]) -> Tensor:
        """The totals of one step."""
        return self._read(self.readings[-1], outputs)

    def _read(self, reading: Reading, outputs: Sequence[Tensor]) -> Tensor:
        def at(number: int) -> Tensor:
            output, start, shape = self.places[number]
            vector = outputs[self.num_gradients + output]
            return vector[start : start + shape.numel()].view(shape)

        return reading.of(at)


def step_graph(
    captured: Captured, flat: FlatParameters, arguments: Sequence[Tensor], num_steps: int = 1
) -> StepGraph:
    """Put an evaluation and the updates of its parameters together, once or several times.

    Args:
        captured: The evaluation.
        flat: The parameters.
        arguments: Tensors like those of the arguments.
        num_steps: How many steps the graph takes.
    """
    source = captured.graph.graph
    graph = fx.Graph()
    numbers = graph.placeholder("numbers")
    groups = [_group_inputs(graph, number, group) for number, group in enumerate(flat.groups)]
    num_noise = len(captured.noise.inputs)
    noise = [graph.placeholder(f"noise_{i}") for i in range(num_steps * num_noise)]
    read = [graph.placeholder(f"read_{i}") for i in range(len(captured.read))]
    given = [graph.placeholder(f"argument_{i}") for i in range(len(arguments))]
    flat_nodes = [node for value, states in groups for node in (value, *states)]
    num_numbers = len(captured.weights) + sum(len(group.numbers()) for group in flat.groups)
    kinds = {False, num_steps > 1}
    updates = {follows: _update_graph(captured, flat, source, follows) for follows in kinds}
    results: list[Sequence[fx.Node]] = []
    for step in range(num_steps):
        own = graph.call_function(
            _ATEN.slice.Tensor, (numbers, 0, step * num_numbers, (step + 1) * num_numbers)
        )
        weights = [
            graph.call_function(_ATEN.select.int, (own, 0, i)) for i in range(len(captured.weights))
        ]
        parameters = [
            part
            for (value, _), group in zip(groups, flat.groups, strict=True)
            for part in _parts(graph, value, group)
        ]
        drawn = noise[step * num_noise : (step + 1) * num_noise]
        outputs = _copied(graph, source, [*weights, *given, *drawn, *parameters, *read])
        before = results[-1][0] if results else None
        last = [] if before is None else [graph.call_function(_ATEN.select.int, (before, 0, 1))]
        update = updates[before is not None]
        results.append(_copied(graph, update, [own, *flat_nodes, *outputs, *last]))
    graph.output(tuple(results[0] if num_steps == 1 else _stacked(graph, results)))
    module = fx.GraphModule(captured.graph, graph)
    outside = sum(group.update is None for group in flat.groups)
    return StepGraph(module, outside, _places_of(source, flat), captured.readings, num_steps)


def _copied(graph: fx.Graph, source: fx.Graph, inputs: Sequence[fx.Node]) -> Sequence[fx.Node]:
    placeholders = [node for node in source.nodes if node.op == "placeholder"]
    outputs: Any = graph.graph_copy(source, dict(zip(placeholders, inputs, strict=True)))
    return tuple(outputs)


def _stacked(graph: fx.Graph, results: Sequence[Sequence[fx.Node]]) -> list[fx.Node]:
    return [graph.call_function(_ATEN.cat.default, (list(v),)) for v in zip(*results, strict=True)]


def _group_inputs(graph: fx.Graph, number: int, group: FlatGroup) -> tuple[fx.Node, list[fx.Node]]:
    value = graph.placeholder(f"value_{number}")
    return value, [graph.placeholder(f"{name}_{number}") for name in group.state]


def _parts(graph: fx.Graph, value: fx.Node, group: FlatGroup) -> list[fx.Node]:
    start, parts = 0, []
    for parameter in group.parameters:
        end = start + parameter.numel()
        part = graph.call_function(_ATEN.slice.Tensor, (value, 0, start, end))
        parts.append(graph.call_function(_ATEN.view.default, (part, list(parameter.shape))))
        start = end
    return parts


def _examples(source: fx.Graph) -> list[Tensor]:
    output = next(node for node in source.nodes if node.op == "output")
    return [unfilled(node.meta["val"]) for node in output.args[0]]


def _places_of(source: fx.Graph, flat: FlatParameters) -> list[_Place]:
    objective, *others = _examples(source)
    return _places(objective, others[len(flat.parameters) :])


def _update_graph(
    captured: Captured, flat: FlatParameters, source: fx.Graph, follows: bool
) -> fx.Graph:
    """The graph from the outputs of an evaluation to those of a step.

    Args:
        captured: The evaluation.
        flat: The parameters.
        source: Its graph.
        follows: Whether the step follows another, and moves nothing where that one was not finite.
    """
    examples = _examples(source)
    num_grads = len(flat.parameters)

    def update(numbers: Tensor, *rest: Tensor) -> list[Tensor]:
        left = list(rest)
        before = left.pop() > 0 if follows else None
        flats = [[left.pop(0) for _ in range(1 + len(group.state))] for group in flat.groups]
        objective, grads, tensors = left[0], left[1 : 1 + num_grads], left[1 + num_grads :]
        gradients = _joined(grads, flat)
        is_finite = objective.isfinite() if before is None else before & objective.isfinite()
        for gradient in gradients:
            is_finite = is_finite & gradient.isfinite().all()
        first = len(captured.weights)
        for (value, *states), group, gradient in zip(flats, flat.groups, gradients, strict=True):
            if group.update is None:
                continue
            own = numbers[first : first + len(group.numbers())].unbind()
            first += len(own)
            _move(group, value, states, gradient, own, is_finite)
        outside = [g for g, group in zip(gradients, flat.groups, strict=True) if not group.update]
        return [*outside, *_vectors(objective, is_finite, tensors)]

    numbers = torch.zeros(
        len(captured.weights) + sum(len(group.numbers()) for group in flat.groups),
        dtype=torch.float64,
    )
    flats = [t.clone() for group in flat.groups for t in (group.value, *group.state.values())]
    last = [torch.ones((), dtype=examples[0].dtype)] if follows else []
    graph = trace_operations(update, numbers, *flats, *examples, *last)
    graph.graph.eliminate_dead_code()
    return graph.graph


def _joined(grads: Sequence[Tensor], flat: FlatParameters) -> list[Tensor]:
    left = list(grads)
    return [torch.cat([left.pop(0).reshape(-1) for _ in group.parameters]) for group in flat.groups]


def _move(
    group: FlatGroup,
    value: Tensor,
    states: Sequence[Tensor],
    gradient: Tensor,
    numbers: Sequence[Tensor],
    is_finite: Tensor,
) -> None:
    new, new_states = group.update(
        value, gradient, dict(zip(group.state, states, strict=True)), numbers
    )
    value.copy_(torch.where(is_finite, new, value))
    for name, state in zip(group.state, states, strict=True):
        state.copy_(torch.where(is_finite, new_states[name], state))


def _vectors(objective: Tensor, is_finite: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    kinds = _kinds(objective, tensors)
    first = [objective, is_finite.to(objective.dtype)]
    return [
        torch.cat([t.reshape(-1) for t in ([*first, *kind] if i == 0 else kind)])
        for i, kind in enumerate(kinds.values())
    ]


def _kinds(objective: Tensor, tensors: Sequence[Tensor]) -> Mapping[torch.dtype, list[Tensor]]:
    kinds: dict[torch.dtype, list[Tensor]] = {objective.dtype: []}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    return kinds


def _places(objective: Tensor, tensors: Sequence[Tensor]) -> list[_Place]:
    outputs = {dtype: i for i, dtype in enumerate(_kinds(objective, tensors))}
    starts = dict.fromkeys(outputs, 0) | {objective.dtype: 2}
    places = []
    for tensor in tensors:
        places.append(_Place(outputs[tensor.dtype], starts[tensor.dtype], tensor.shape))
        starts[tensor.dtype] += tensor.numel()
    return places

"""A whole training step as one graph: the loss, its terms, its gradients, and what moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from .evaluation import Captured
from .flat import FlatGroup, FlatParameters
from .private import trace_operations

__all__ = ["StepGraph", "step_graph"]


class _Place(NamedTuple):
    """Where a tensor lies in the outputs."""

    output: int
    start: int
    shape: torch.Size


class StepGraph(NamedTuple):
    """A graph of a step, and how its outputs are read.

    It takes the numbers (the weights, then those of each group's update), for each group its vector
    and its states, the noise, what it reads, and the arguments. It moves the vectors and states in
    place, unless something is not finite, and returns for each group that is moved outside its
    gradient; then one vector for each dtype, of which the first begins with the objective, and
    whether all was finite.

    Args:
        graph: The graph.
        num_gradients: How many gradients it returns.
        places: Where the tensors of the terms are.
    """

    graph: fx.GraphModule
    num_gradients: int
    places: Sequence[_Place]

    def tensors(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of the terms."""
        vectors = outputs[self.num_gradients :]
        return [
            vectors[place.output][place.start : place.start + place.shape.numel()].view(place.shape)
            for place in self.places
        ]


def step_graph(captured: Captured, flat: FlatParameters, arguments: Sequence[Tensor]) -> StepGraph:
    """Put an evaluation and the updates of its parameters together.

    Args:
        captured: The evaluation.
        flat: The parameters.
        arguments: Tensors like those of the arguments.
    """
    source = captured.graph.graph
    graph = fx.Graph()
    numbers = graph.placeholder("numbers")
    groups = [_group_inputs(graph, number, group) for number, group in enumerate(flat.groups)]
    noise = [graph.placeholder(f"noise_{i}") for i in range(len(captured.noise.inputs))]
    read = [graph.placeholder(f"read_{i}") for i in range(len(captured.read))]
    given = [graph.placeholder(f"argument_{i}") for i in range(len(arguments))]
    select = torch.ops.aten.select.int
    weights = [graph.call_function(select, (numbers, 0, i)) for i in range(len(captured.weights))]
    parameters = [
        part
        for (value, _), group in zip(groups, flat.groups, strict=True)
        for part in _parts(graph, value, group)
    ]
    inputs = [*weights, *given, *noise, *parameters, *read]
    placeholders = [node for node in source.nodes if node.op == "placeholder"]
    outputs: Sequence[fx.Node] = graph.graph_copy(  # type: ignore[assignment]
        source, dict(zip(placeholders, inputs, strict=True))
    )
    update, places = _update_graph(captured, flat, source)
    flat_nodes = [node for value, states in groups for node in (value, *states)]
    update_inputs = [numbers, *flat_nodes, *outputs]
    placeholders = [node for node in update.nodes if node.op == "placeholder"]
    result = graph.graph_copy(update, dict(zip(placeholders, update_inputs, strict=True)))
    graph.output(result)
    module = fx.GraphModule(captured.graph, graph)
    outside = sum(group.update is None for group in flat.groups)
    return StepGraph(module, outside, places)


def _group_inputs(graph: fx.Graph, number: int, group: FlatGroup) -> tuple[fx.Node, list[fx.Node]]:
    value = graph.placeholder(f"value_{number}")
    return value, [graph.placeholder(f"{name}_{number}") for name in group.state]


def _parts(graph: fx.Graph, value: fx.Node, group: FlatGroup) -> list[fx.Node]:
    aten, start, parts = torch.ops.aten, 0, []
    for parameter in group.parameters:
        end = start + parameter.numel()
        part = graph.call_function(aten.slice.Tensor, (value, 0, start, end))
        parts.append(graph.call_function(aten.view.default, (part, list(parameter.shape))))
        start = end
    return parts


def _update_graph(
    captured: Captured, flat: FlatParameters, source: fx.Graph
) -> tuple[fx.Graph, list[_Place]]:
    """The graph from the outputs of an evaluation to those of a step."""
    output = next(node for node in source.nodes if node.op == "output")
    examples = [_example(node) for node in output.args[0]]
    num_grads = len(flat.parameters)
    places = _places(examples[0], examples[1 + num_grads :])

    def update(numbers: Tensor, *rest: Tensor) -> list[Tensor]:
        left = list(rest)
        flats = [[left.pop(0) for _ in range(1 + len(group.state))] for group in flat.groups]
        objective, grads, tensors = left[0], left[1 : 1 + num_grads], left[1 + num_grads :]
        gradients = _joined(grads, flat)
        is_finite = objective.isfinite()
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
    graph = trace_operations(update, numbers, *flats, *examples)
    graph.graph.eliminate_dead_code()
    return graph.graph, places


def _example(node: fx.Node) -> Tensor:
    like = node.meta["val"]
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)


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

"""One evaluation of a loss and its gradients as a graph of operations on tensors."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy
import pyro
import torch
from torch import Tensor, fx

from ..decisions import recorded, repeated
from ..elbo.aside import pythons_generators_kept
from ..elbo.baselines import averages, averages_kept
from ..summary import totals_of
from ..terms import ELBOTerms
from ..weighting import Weights, is_zero
from .arguments import Arguments
from .indexing import views_of_indexing
from .layout import TermsLayout, tensors_of
from .noise import Noise, take_noise_out
from .outputs import Reading, leave_out_what_follows
from .private import trace_operations
from .refusals import NoValuesRead, check_loss, check_operations, hold_to_counts
from .simplify import simplify
from .surroundings import Surroundings

__all__ = ["Captured", "Evaluation", "capture", "nothing_moved", "put_back", "weights_ahead"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A loss with its program at some arguments.

    Args:
        loss: The loss.
        model: The model.
        guide: The guide.
        arguments: The arguments.
        parameters: What gradients are taken of.
        surroundings: What the program reads beside its arguments.
    """

    loss: Any
    model: Any
    guide: Any
    arguments: Arguments
    parameters: Sequence[Tensor]
    surroundings: Surroundings

    @property
    def num_particles(self) -> int:
        """How many particles lie side by side in its tensors."""
        is_vectorised = getattr(self.loss, "vectorize_particles", False)
        return int(self.loss.num_particles) if is_vectorised else 1

    @property
    def buffers(self) -> list[Tensor]:
        """What modules move as they run."""
        return self.surroundings.buffers

    def value(self, arguments: Arguments) -> tuple[Tensor, ELBOTerms | None]:
        """The objective and its terms at other arguments, without gradients."""
        args, kwargs = arguments.filled(arguments.tensors)
        return self._objective(args, kwargs)

    def run(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ELBOTerms | None, list[Tensor]]:
        """The objective, its terms, and minus its gradients."""
        args, kwargs = self.arguments.filled(arguments)
        with torch.enable_grad():
            objective, terms = self._objective(args, kwargs)
            taken = [p for p in self.parameters if p.requires_grad]
            found = torch.autograd.grad(-objective, taken, allow_unused=True)
        grad_of = dict(zip(map(id, taken), found, strict=True))
        own = ((p, grad_of.get(id(p))) for p in self.parameters)
        grads = [torch.zeros_like(p) if grad is None else grad.detach() for p, grad in own]
        return objective.detach(), terms, grads

    def _objective(self, args: Any, kwargs: Any) -> tuple[Tensor, ELBOTerms | None]:
        if hasattr(self.loss, "decompose"):
            objective, kept = self.loss._evaluate(self.model, self.guide, args, kwargs)
            return objective, kept.terms()
        return -self.loss.differentiable_loss(self.model, self.guide, *args, **kwargs), None


@dataclass(frozen=True, eq=False)
class Captured:
    """The graph of an evaluation.

    The graph takes the weights, the arguments, the noise, the parameters, and what it reads beside
    them; it returns the objective, the gradients, and what the tensors of the terms are read from,
    and last their totals.

    Args:
        graph: The graph.
        weights: The names of the weights, in order.
        noise: What draws the noise.
        read: The tensors that it reads beside its other inputs: buffers, data in a closure.
        readings: How the tensors of the terms are read from its last outputs.
        layout: What makes terms of these tensors, where the loss has terms.
    """

    graph: fx.GraphModule
    weights: Sequence[str]
    noise: Noise
    read: Sequence[Tensor]
    readings: Sequence[Reading]
    layout: TermsLayout | None

    @property
    def num_nodes(self) -> int:
        """How many operations there are."""
        return len(self.graph.graph.nodes)


def capture(evaluation: Evaluation) -> Captured:
    """Run a loss once as always, and once more for its graph.

    Raises:
        Exception: Whatever stands in the way: a branch on a value, a structure that changes, ...
    """
    check_loss(evaluation.loss)
    if any(tensor.requires_grad for tensor in evaluation.arguments.tensors):
        raise NotImplementedError("an argument takes gradients")
    with _nothing_changed(evaluation), recorded() as answers:
        before, drawn = averages(), _python_generators()
        terms = evaluation.run(evaluation.arguments.tensors)[1]
        if drawn != _python_generators():
            raise NotImplementedError(
                "it draws from the generators of Python or numpy; draw from torch's"
            )
        if not _are_equal(before, averages()):
            raise NotImplementedError("a baseline keeps a decaying average between the steps")
    weights = weights_of(evaluation.loss)
    sites: dict[str, str] = {}

    def traced(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(weights, inputs, strict=False))
        looking, weighted = NoValuesRead(), _weighted_by(evaluation.loss, given)
        with looking, repeated(answers) as assumed, weighted:
            objective, found, grads = evaluation.run(inputs[len(given) :])
        if assumed:  # a step that these do not hold for is not finite, moves nothing, and is redone
            objective = torch.where(torch.stack(assumed).all(), objective, math.nan)
        if terms is None or found is None:
            return [objective, *grads]
        names = {id(value): name for name, value in given.items()}
        sites.update({n: names[id(s.beta)] for n, s in found.sites.items() if id(s.beta) in names})
        own = (tensor.detach() for tensor in tensors_of(found, terms))
        return [objective, *grads, *own, totals_of(found)]

    numbers = [torch.tensor(value, dtype=torch.float64) for value in weights.values()]
    own = [tensor.detach() for tensor in evaluation.arguments.tensors]  # none is another, or read
    with _nothing_changed(evaluation), pyro.validation_enabled(False):
        graph = trace_operations(traced, *numbers, *own)
    check_operations(graph)
    hold_to_counts(graph.graph)
    noise = take_noise_out(graph.graph)
    read = _inputs_instead_of_attributes(graph, evaluation.parameters)
    graph.graph.set_codegen(fx.graph.CodeGen())
    views_of_indexing(graph.graph)
    simplify(graph.graph)
    readings = leave_out_what_follows(graph.graph, 1 + len(evaluation.parameters))
    graph.graph.eliminate_dead_code()
    layout = None if terms is None else TermsLayout(terms, sites)
    return Captured(graph, list(weights), noise, read, readings, layout)


def weights_of(loss: Any, ahead: int = 0) -> dict[str, float]:
    """The weights that are not 0, now or some steps ahead, by their names in the mapping."""
    if not hasattr(loss, "_weights"):
        return {}
    now = loss._weights(ahead)
    if not now.by_site:
        return {} if is_zero(now.default) else {"*": now.default}
    named = {"*": now.default, **now.by_site}
    return {name: weight for name, weight in named.items() if not is_zero(weight)}


def weights_ahead(loss: Any, num_steps: int) -> list[dict[str, float]]:
    """The weights of the next steps, up to one of which a schedule says nothing."""
    found = [weights_of(loss)]
    if num_steps == 1:
        return found
    with suppress(Exception):  # its own step says so, when it comes to that
        found += [weights_of(loss, ahead) for ahead in range(1, num_steps)]
    return found


@contextmanager
def _weighted_by(loss: Any, values: Mapping[str, Tensor]) -> Iterator[None]:
    if not values:
        yield
        return
    now = loss._weights()
    by_site = {name: values.get(name, weight) for name, weight in now.by_site.items()}
    loss._given_weights = Weights(values.get("*", now.default), by_site)
    try:
        yield
    finally:
        loss._given_weights = None


def _are_equal(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[n], others[n]) for n in some)


def _python_generators() -> Any:
    state: Any = numpy.random.get_state()
    return random.getstate(), state[1].tobytes(), state[2:]


@contextmanager
def nothing_moved(surroundings: Surroundings) -> Iterator[None]:
    """Afterwards generators, buffers and baselines are where they were."""
    states = [generator.get_state() for generator in surroundings.generators]
    copies = [(buffer, buffer.clone()) for buffer in surroundings.buffers]
    with torch.random.fork_rng(), pythons_generators_kept(), averages_kept():
        try:
            yield
        finally:
            put_back(copies)
            for generator, state in zip(surroundings.generators, states, strict=True):
                generator.set_state(state)


@contextmanager
def _nothing_changed(evaluation: Evaluation) -> Iterator[None]:
    """The same, for a program that changes no other tensor.

    Raises:
        NotImplementedError: It changes an argument, or a tensor that it holds, in place.
    """
    held = [*evaluation.arguments.tensors, *evaluation.surroundings.tensors]
    copies = [(tensor, tensor.clone()) for tensor in held]
    versions = [tensor._version for tensor in held]
    changed = []
    with nothing_moved(evaluation.surroundings):
        try:
            yield
        finally:
            pairs = zip(copies, versions, strict=True)
            changed = [copied for copied, version in pairs if copied[0]._version != version]
            put_back(changed)
    if changed:
        raise NotImplementedError(
            "the program changes a tensor in place, an argument or one that it holds; make it a "
            "buffer of a module"
        )


def put_back(copies: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Give tensors their copies' values."""
    with torch.no_grad():
        for tensor, copy in copies:
            tensor.copy_(copy)


def _inputs_instead_of_attributes(
    graph: fx.GraphModule, parameters: Sequence[Tensor]
) -> list[Tensor]:
    """Make inputs of the parameters, in their order, and then of what else a graph reads."""
    places = {id(tensor): i for i, tensor in enumerate(parameters)}
    nodes: dict[int, list[fx.Node]] = {}
    tensors: dict[int, Tensor] = {id(tensor): tensor for tensor in parameters}
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        tensor = getattr(graph, node.target)
        if id(tensor) in places or not _is_constant(node):
            nodes.setdefault(id(tensor), []).append(node)
            tensors[id(tensor)] = tensor
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for number, key in enumerate(tensors):
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"read_{number}")
        for node in nodes.get(key, ()):
            last.meta.update(node.meta)
            node.replace_all_uses_with(last)
            graph.graph.erase_node(node)
    return [tensor for key, tensor in tensors.items() if key not in places]


def _is_constant(node: fx.Node) -> bool:
    """Whether an attribute is a number that the program wrote, copied anew in each run."""
    return all(user.target is torch.ops.aten.lift_fresh_copy.default for user in node.users)

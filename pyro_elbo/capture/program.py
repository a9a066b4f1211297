"""A captured step that can be taken again and again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..terms import ELBOTerms
from .arguments import Arguments
from .evaluation import Evaluation, capture, nothing_moved
from .flat import FlatParameters
from .private import compile_graph, has_compiler
from .step import step_graph
from .surroundings import Surroundings

__all__ = ["Outcome", "Program"]

EVERY = 1024


class Outcome:
    """What a step gave.

    Args:
        outputs: The outputs of its graph.
        program: The program.
        weights: The weights by name.
    """

    def __init__(
        self, outputs: Sequence[Tensor], program: Program, weights: Mapping[str, float]
    ) -> None:
        self._outputs, self._program, self._weights = outputs, program, weights
        self.first = outputs[program.step.num_gradients]
        objective, is_finite = self.first[:2].tolist()
        self.loss, self.is_finite = -objective, is_finite == 1.0

    @property
    def gradients(self) -> Sequence[Tensor]:
        """The gradients of the groups that are moved outside of the graph."""
        return self._outputs[: self._program.step.num_gradients]

    def agrees(self, objective: Tensor) -> bool:
        """Whether an objective is that of the step, up to rounding."""
        vector = self.first.abs()
        size = vector[0] + vector[2:].sum()
        bound = size * torch.finfo(vector.dtype).eps ** 0.5
        return bool((objective - self.first[0]).abs() <= bound)

    def terms(self) -> ELBOTerms:
        """The terms."""
        assert self._program.captured.layout is not None
        tensors = self._program.step.tensors(self._outputs)
        return self._program.captured.layout.terms(self.first[0], tensors, self._weights)


class Program:
    """A step of one loss at arguments of one kind.

    Args:
        evaluation: The loss with its program.
        arguments: The arguments.
        flat: The parameters.
        compiles: Whether to compile the graph, rather than to replay it.
        max_nodes: The largest graph that is compiled.

    Raises:
        Exception: Whatever stands in the way of capturing the evaluation.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        arguments: Arguments,
        flat: FlatParameters,
        compiles: bool,
        max_nodes: int,
    ) -> None:
        start = perf_counter()
        self.captured = capture(evaluation)
        self.step = step_graph(self.captured, flat, arguments.tensors)
        self._key, self._flat_key = arguments.key, flat.key
        self._surroundings = Surroundings(evaluation.model, evaluation.guide)
        self._evaluation = evaluation
        self.num_nodes = len(self.step.graph.graph.nodes)
        self.num_steps = 0
        self.why_replayed = "" if not compiles else self._why_replayed(max_nodes)
        self.is_compiled = compiles and not self.why_replayed
        self._run: Callable[..., Any] = self.step.graph
        self.capture_seconds, start = perf_counter() - start, perf_counter()
        if self.is_compiled:
            self._compile(self._inputs(arguments, flat, self._example_numbers(flat)))
        self.compile_seconds = perf_counter() - start

    def matches(
        self, arguments: Arguments, flat: FlatParameters, weights: Mapping[str, float]
    ) -> bool:
        """Whether the program is that of a step."""
        return (
            self._key == arguments.key
            and self.captured.weights == list(weights)
            and self._flat_key == flat.key
            and self._surroundings.hold
        )

    def take(
        self, arguments: Arguments, flat: FlatParameters, weights: Mapping[str, float]
    ) -> Outcome:
        """Take a step, without counting it; where something is not finite nothing moves."""
        numbers = list(weights.values())
        for group in flat.groups:
            numbers += group.numbers()
        self.captured.noise.draw()
        with torch.no_grad():
            outputs = self._run(*self._inputs(arguments, flat, numbers))
        return Outcome(outputs, self, weights)

    @property
    def explanation(self) -> str:
        """How its steps are taken, in words."""
        how = f"compiled in {self.compile_seconds:.1f} s"
        if not self.is_compiled:
            how = "replayed" + (f", since {self.why_replayed}" if self.why_replayed else "")
        return (
            f"{self.num_steps} steps of a graph of {self.num_nodes} operations, captured in "
            f"{self.capture_seconds:.1f} s, {how}"
        )

    @property
    def is_due(self) -> bool:
        """Whether it is time to compare a step with eager."""
        count = self.num_steps
        return count & (count - 1) == 0 or count % EVERY == 0

    def check_take(
        self, arguments: Arguments, flat: FlatParameters, weights: Mapping[str, float]
    ) -> Outcome | str:
        """Take a step where eager agrees; else why it does not, and nothing moves."""
        moved = [*flat.vectors, *self._evaluation.buffers]
        copies = [tensor.clone() for tensor in moved]
        try:
            with nothing_moved(self._evaluation.buffers), torch.no_grad():
                objective, terms = self._evaluation.value(arguments)
                if self.captured.layout is not None:
                    self.captured.layout.check(terms)
        except Exception as error:
            return f"{type(error).__name__}: {_first_line(error)}"
        outcome = self.take(arguments, flat, weights)
        if outcome.is_finite and not outcome.agrees(objective):
            with torch.no_grad():
                for tensor, copy in zip(moved, copies, strict=True):
                    tensor.copy_(copy)
            return (
                f"the captured step has the objective {-outcome.loss:.6g}, and the program has "
                f"{float(objective):.6g}: it hangs on something that changed unseen (a value in a "
                "branch, an attribute of an object); pass it as a tensor"
            )
        return outcome

    def _inputs(
        self, arguments: Arguments, flat: FlatParameters, numbers: list[float]
    ) -> list[Tensor]:
        return [
            torch.tensor(numbers, dtype=torch.float64),
            *flat.vectors,
            *self.captured.noise.inputs,
            *self.captured.read,
            *arguments.tensors,
        ]

    def _example_numbers(self, flat: FlatParameters) -> list[float]:
        count = len(self.captured.weights) + sum(len(group.numbers()) for group in flat.groups)
        return [0.0] * count

    def _why_replayed(self, max_nodes: int) -> str:
        if self.num_nodes > max_nodes:
            return (
                f"the graph has {self.num_nodes} operations, and more than max_nodes={max_nodes} "
                "would take long to compile"
            )
        return "" if has_compiler() else "there is no C++ compiler"

    def _compile(self, inputs: Sequence[Tensor]) -> None:
        try:
            self._run = compile_graph(self.step.graph, [tensor.clone() for tensor in inputs])
        except Exception as error:  # whatever the compiler cannot do, the graph can be replayed
            self.is_compiled = False
            self.why_replayed = f"it did not compile: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")

"""A captured step that can be taken again and again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..summary import Summary
from ..terms import ELBOTerms
from .arguments import Arguments
from .compilation import Compilation, Compiler
from .evaluation import Evaluation, capture, nothing_moved, put_back
from .flat import FlatParameters
from .proof import proves
from .step import step_graph
from .tape import Outputs

__all__ = ["Outcome", "Program"]

EVERY = 1024

Ahead = Sequence[Mapping[str, float]]
"""The weights by name, of the next step and of those after it."""


class Outcome:
    """What a step gave.

    Args:
        outputs: The outputs of its graph.
        program: The program.
        weights: The weights by name.
    """

    def __init__(self, outputs: Outputs, program: Program, weights: Mapping[str, float]) -> None:
        self._given, self._program, self._weights = outputs, program, weights
        objective, is_finite = outputs[program.step.num_gradients][:2].tolist()
        self.loss, self.is_finite = -objective, is_finite == 1.0

    @property
    def gradients(self) -> Sequence[Tensor]:
        """The gradients of the groups that are moved outside of the graph."""
        return self._outputs[: self._program.step.num_gradients]

    @property
    def _outputs(self) -> list[Tensor]:
        return [*map(torch.as_tensor, self._given)]

    @property
    def _first(self) -> Tensor:
        return self._outputs[self._program.step.num_gradients]

    def agrees(self, objective: Tensor, tensors: Sequence[Tensor]) -> bool:
        """Whether an objective, and tensors of terms, are those of the step, up to rounding."""
        vector = self._first.abs()
        size = float(vector[0] + vector[2:].sum())
        rounding = torch.finfo(vector.dtype).eps
        if abs(float(objective) + self.loss) > rounding**0.5 * size:
            return False
        own = self._program.step.tensors(self._outputs)
        pairs = zip(tensors, own, strict=False)  # the last are totals of those before
        return all(_are_close(one, other, rounding, size) for one, other in pairs)

    def terms(self) -> ELBOTerms:
        """The terms."""
        assert self._program.captured.layout is not None
        tensors = self._program.step.tensors(self._outputs)
        return self._program.captured.layout.terms(self._first[0], tensors, self._weights)

    def summary(self) -> Summary | None:
        """The totals of the terms."""
        layout = self._program.captured.layout
        if layout is None:
            return None
        return layout.summary(self._program.step.totals(self._outputs), self._weights)


class Program:
    """A step of one loss at arguments of one kind, or several steps in one call.

    Args:
        evaluation: The loss with its program, arguments and surroundings.
        flat: The parameters.
        compiler: How to compile the graph; ``None`` to replay it.
        num_steps: How many steps a call takes, where that is possible: where the graph draws its
            noise beforehand, holds every optimiser, and moves no buffers.

    Raises:
        Exception: Whatever stands in the way of capturing the evaluation.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        flat: FlatParameters,
        compiler: Compiler | None,
        num_steps: int = 1,
    ) -> None:
        start = perf_counter()
        arguments = evaluation.arguments
        if compiler is not None:
            inputs = [*flat.vectors, *arguments.tensors]
            compiler.prepare(inputs, evaluation.num_particles)
        self.captured = capture(evaluation)
        self.why_single = self._why_single(evaluation, flat) if num_steps > 1 else ""
        self.size = 1 if self.why_single else num_steps
        self.step = step_graph(self.captured, flat, arguments.tensors, self.size)
        self._noise = self.captured.noise.repeated(self.size)
        self._key, self._flat_key = arguments.key, flat.key
        self._names = [self.captured.weights] * self.size
        self._surroundings = evaluation.surroundings
        self._forms = self._forms_now()
        self._evaluation, self._buffers = evaluation, evaluation.buffers
        self.num_nodes = len(self.step.graph.graph.nodes)
        self.num_steps = self.num_calls = 0
        self.capture_seconds = perf_counter() - start
        self._surroundings.renew()
        count = len(self.captured.weights) + sum(len(group.numbers()) for group in flat.groups)
        self._numbers = torch.zeros(count * self.size, dtype=torch.float64)
        self._written = self._numbers.numpy()
        own = self._inputs(arguments, flat)
        if any(tensor.is_neg() or tensor.is_conj() for tensor in own):
            raise NotImplementedError(
                "a tensor is a view that negates what it is a view of; pass tensor.resolve_neg(), "
                "or resolve_conj()"
            )
        self.compilation = Compilation(self.step.graph, own, compiler)
        if compiler is not None and not self.compilation.why_not:
            self._noise.compile()

    def matches(self, arguments: Arguments, flat: FlatParameters, weights: Ahead) -> bool:
        """Whether the program is that of the next steps."""
        return (
            self.size <= len(weights)
            and self._key == arguments.key
            and [*map(list, weights[: self.size])] == self._names
            and self._flat_key == flat.key
            and self._surroundings.hold
            and self._forms_now() == self._forms
        )

    def take(self, arguments: Arguments, flat: FlatParameters, weights: Ahead) -> list[Outcome]:
        """Take the steps of a call, without counting them.

        From a step on in which something is not finite nothing moves.
        """
        numbers: list[float] = []
        for step in range(self.size):
            numbers += weights[step].values()
            for group in flat.groups:
                numbers += group.numbers(step)
        self._written[:] = numbers
        self._noise.draw()
        inputs = self._inputs(arguments, flat)
        if self.compilation.unproven is not None:
            self.compilation.prove(partial(proves, step=self.step, inputs=inputs, flat=flat))
        outputs = self.compilation.run(*inputs)
        increment_version([*flat.parameters, *self._buffers])
        steps = zip(self.step.steps(outputs), weights, strict=False)
        return [Outcome(own, self, named) for own, named in steps]

    @property
    def buffers(self) -> list[Tensor]:
        """What its steps move beside the parameters."""
        return self._buffers

    def draw_again(self, num_steps: int) -> None:
        """Bring the generators to where they are after the first so many steps of a call."""
        self._noise.draw(num_steps)

    @property
    def explanation(self) -> str:
        """How its steps are taken, in words."""
        return (
            f"{self.num_steps} steps of a graph of {self.num_nodes} operations, "
            f"{self._size}captured in {self.capture_seconds:.1f} s, "
            f"{self.compilation.explanation}"
        )

    @property
    def _size(self) -> str:
        if self.why_single:
            return f"one step a call, since {self.why_single}, "
        return f"{self.size} steps a call, " if self.size > 1 else ""

    @property
    def is_due(self) -> bool:
        """Whether it is time to compare a step with eager."""
        count = self.num_calls
        return count & (count - 1) == 0 or count % EVERY == 0

    def check_take(
        self, arguments: Arguments, flat: FlatParameters, weights: Ahead
    ) -> list[Outcome] | str:
        """Take the steps where eager agrees; else why it does not, and nothing moves."""
        copies = [(tensor, tensor.clone()) for tensor in (*flat.vectors, *self._buffers)]
        found, state = self._eagerly(arguments)
        self._surroundings.renew()
        own = self._state_after_one() if self.size > 1 else None
        outcomes = self.take(arguments, flat, weights)
        outcome, own = outcomes[0], torch.get_rng_state() if own is None else own
        is_drawn = isinstance(found, str) or torch.equal(own, state)
        agrees = not isinstance(found, str) and outcome.agrees(*found)
        if is_drawn and (agrees or not outcome.is_finite):
            return outcomes
        put_back(copies)
        if isinstance(found, str):
            return found
        if not is_drawn:
            return (
                "the program leaves the random number generator elsewhere than its draws do: it "
                "puts it back after some of them"
            )
        return (
            f"the captured step has the objective {-outcome.loss:.6g}, and the program has "
            f"{float(found[0]):.6g}, or they differ in a term: it hangs on something that changed "
            "unseen (a value in a branch, an attribute of an object); pass it as a tensor"
        )

    def _state_after_one(self) -> Tensor:
        """Where the generator is after the draws of one step."""
        with torch.random.fork_rng():
            self._noise.draw(1)
            return torch.get_rng_state()

    def _eagerly(
        self, arguments: Arguments
    ) -> tuple[tuple[Tensor, Sequence[Tensor]] | str, Tensor]:
        """What the program itself gives, or why it is another program by now; and the generator."""
        layout = self.captured.layout
        with nothing_moved(self._evaluation.surroundings), torch.no_grad():
            try:
                objective, terms = self._evaluation.value(arguments)
                found = objective, () if layout is None else layout.tensors(terms)
            except Exception as error:
                return f"{type(error).__name__}: {_first_line(error)}", torch.get_rng_state()
            return found, torch.get_rng_state()

    def _inputs(self, arguments: Arguments, flat: FlatParameters) -> list[Tensor]:
        return [
            self._numbers,
            *flat.vectors,
            *self._noise.inputs,
            *self.captured.read,
            *arguments.tensors,
        ]

    def _forms_now(self) -> tuple[Any, Any]:
        """The shapes and strides of what is read beside the arguments."""
        read = self.captured.read
        return [*map(attrgetter("shape"), read)], [*map(Tensor.stride, read)]

    def _why_single(self, evaluation: Evaluation, flat: FlatParameters) -> str:
        if not self.captured.noise.is_all:
            return "it draws from distributions that depend on computed values"
        if evaluation.buffers:
            return "its modules have buffers"
        if any(group.update is None for group in flat.groups):
            alone = "" if flat.inside else " (that takes a compiled one, and no hook on gradients)"
            return f"an optimiser is not a part of the graph{alone}"
        return ""


def _are_close(one: Tensor, other: Tensor, rounding: float, size: float) -> bool:
    """Whether two tensors are equal up to rounding, in them or in what they are the sum of."""
    one, other = one.double(), other.double()
    same = (one == other) | (one.isnan() & other.isnan())
    off = (one - other).abs().masked_fill(same, 0.0).sum()
    own = one.abs().nan_to_num(0.0, 0.0, 0.0).sum() + 1.0
    return bool(off <= rounding**0.5 * own + 10 * rounding * size)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")

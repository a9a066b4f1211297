"""A drop-in for Pyro's ``SVI`` that captures its step once, compiles it, and takes it again."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import takewhile
from numbers import Integral
from typing import Any

import torch
from pyro.infer import SVI
from pyro.infer.util import zero_grads
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor

from ..capture.arguments import Arguments, arguments_of
from ..capture.compilation import Compiler
from ..capture.evaluation import Evaluation, put_back, weights_ahead
from ..capture.flat import FlatParameters
from ..capture.library import folder_of
from ..capture.parameters import check_alone
from ..capture.program import Outcome, Program
from ..elbo.tracers import ParamCapture
from ..summary import Summary
from .eager import Evaluated, Kinds, Ready, attempted, held_by, kind_of, ready_after, why_not

__all__ = ["CompiledSVI"]

MOST_PROGRAMS, MOST_CAPTURES = 8, 32

Given = tuple[Arguments, Sequence[Mapping[str, float]]]


class CompiledSVI(SVI):
    """Pyro's SVI, each step of which is one captured graph, compiled where that is possible.

    The first step of each kind is taken eagerly, and validated. The next one is captured: the loss
    with all its terms, their gradients and the optimiser are run once through Pyro, and recorded as
    one graph of operations on tensors, which is compiled, and from then on run in place of the
    program. Weights, learning rates and the step are inputs, so that a schedule changes no graph.

    A kind of step is that of its arguments' shapes and dtypes, of the modules, closures, globals
    and objects that model and guide hold, of the parameters that have gradients, of which weights
    are 0, and of the optimiser's options. Where any of them changes, the step is taken eagerly and
    the next one is captured anew. Parameters become parts of one vector: a tensor that shares
    memory with one (``p.detach()``, a kept ``state_dict()``) does not follow it any more.

    What model and guide do in Python (a print, a counter, a branch on something that none of the
    above holds) is done when they are run, and not at a captured step. Steps 0, 1, 2, 4, 8, ...
    of each graph, and every 1,024th, are compared with the program; where they differ training goes
    on eagerly, with a warning that says why.

    Args:
        model: The model.
        guide: The guide.
        optim: A Pyro optimiser. Adam, AdamW, ClippedAdam, SGD, Adagrad and RMSprop of torch and
            Pyro, without ``clip_args``, are part of a compiled graph; any other is run after it.
        loss: A loss of this package, or any :class:`pyro.infer.ELBO` with a ``differentiable_loss``
            that looks at no value.
        compiles: Whether to compile; else the graph is run operation by operation.
        background: Whether to compile in a thread, and to run the graph so meanwhile. When the
            compiled one takes over is a matter of time: the run cannot be repeated bit by bit.
        ahead_of_time: Whether to compile into a library, a file in the user's cache (or in a folder
            named here), which a later process loads if program, shapes, versions and processor are
            the same. That takes several times longer, which is told first: for long runs.
        steps_per_call: How many steps a call of :meth:`step` takes, on the same arguments, in one
            run where that is possible (``explain()`` says where not); so much longer it compiles.
        max_nodes: The most operations of a graph that is compiled.

    Raises:
        ValueError: ``steps_per_call`` or ``max_nodes`` is no integer >= 1.

    Warns:
        UserWarning: Once: training goes on eagerly, or a graph is not compiled, and why.

    Law:
        Losses, terms and parameters are those of ``SVI`` at the same seed: bit for bit with
        ``compiles=False`` (where no matrix product rounds by the place of its parameter in memory),
        up to rounding otherwise.
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        optim: Any,
        loss: Any,
        *,
        compiles: bool = True,
        background: bool = False,
        ahead_of_time: bool | str | os.PathLike[str] = False,
        steps_per_call: int = 1,
        max_nodes: int = 20_000,
    ) -> None:
        counts: dict[str, Any] = {"steps_per_call": steps_per_call, "max_nodes": max_nodes}
        for name, count in counts.items():
            if not isinstance(count, Integral) or count < 1:
                raise ValueError(f"{name} must be an integer >= 1, not {count!r}")
        super().__init__(model, guide, optim, loss)
        self._elbo = loss
        self._has_terms = hasattr(loss, "decompose")
        self.steps_per_call = int(steps_per_call)
        self._losses: list[float] = []
        self._records: list[Outcome | Evaluated] = []
        self._compiles = compiles
        folder = folder_of(ahead_of_time)
        self._compiler = Compiler(max_nodes, background, folder, self._say)
        self._programs: list[Program] = []
        self._flat: FlatParameters | None = None
        self._ready = Kinds()
        self._num_captures = 0
        self._why_eager = ""
        self._said: set[str] = set()

    def step(self, *args: Any, **kwargs: Any) -> float:
        """Take a step, or as many as a call is to take.

        Args:
            *args: Of model and guide.
            **kwargs: Of both too.

        Returns:
            The loss in nats, before the (last) step.
        """
        self._losses, self._records = [], []
        while (left := self.steps_per_call - len(self._losses)) > 0:
            is_plain = not (self._why_eager or _PYRO_STACK) and torch.is_grad_enabled()
            given = self._given(left, args, kwargs) if is_plain else None
            program = None if given is None else self._program(*given)
            if program is None or given is None:
                self._eager(args, kwargs, given)
            else:
                self._take(program, given, args, kwargs)
        return self._losses[-1]

    @property
    def last_losses(self) -> list[float]:
        """The loss of each step of the last call, in nats."""
        return list(self._losses)

    @property
    def last_terms(self) -> list[Any]:
        """The :class:`~pyro_elbo.ELBOTerms` of each step of the last call, if the loss has any."""
        return [record.terms() for record in self._records if self._has_terms]

    @property
    def last_summaries(self) -> list[Summary | None]:
        """The totals of each step of the last call; ``None`` where the loss has no terms."""
        return [record.summary() if self._has_terms else None for record in self._records]

    def explain(self) -> str:
        """What is running, and why."""
        if self._why_eager:
            return f"eager: {self._why_eager}"
        lines = [program.explanation for program in self._programs]
        return "\n".join(lines) or "eager: no kind of step was taken twice yet"

    def _given(self, left: int, args: Any, kwargs: Any) -> Given | None:
        try:
            arguments = arguments_of(args, kwargs)
            if self.steps_per_call > 1:
                check_alone(arguments.tensors)
            return arguments, weights_ahead(self._elbo, left)
        except TypeError as error:
            self._go_on_eagerly(str(error))
            return None

    def _program(
        self, arguments: Arguments, weights: Sequence[Mapping[str, float]]
    ) -> Program | None:
        if self._flat is not None and not self._flat.is_bound(self.optim, self._is_inside):
            self._flat = None
        if self._flat is not None and self._flat.watch.has_gradients:
            return None
        if self._flat is not None:
            for program in self._programs:
                if program.matches(arguments, self._flat, weights):
                    return program
        if len(weights) < self.steps_per_call or any(len(w) != len(weights[0]) for w in weights):
            return None
        ready = self._ready.like(kind_of(arguments, weights), self.optim)
        return None if ready is None else self._new_program(arguments, weights, ready)

    @property
    def _is_inside(self) -> bool:
        """Whether the optimiser may be a part of the graph: no hook is to see the gradients."""
        return self._compiles and not getattr(self._elbo, "_gradient_hooks", None)

    def _new_program(
        self, arguments: Arguments, weights: Sequence[Mapping[str, float]], ready: Ready
    ) -> Program | None:
        try:
            flat = FlatParameters(ready.parameters, ready.asked, self.optim, self._is_inside)
            for program in self._programs:
                if program.matches(arguments, flat, weights):
                    self._flat = flat
                    return program
            if self._num_captures >= MOST_CAPTURES:
                raise RuntimeError(
                    f"{MOST_CAPTURES} kinds of steps were captured already; give them the same "
                    "shapes, and pass numbers that change as tensors"
                )
            own, around = flat.parameters, ready.surroundings
            evaluation = Evaluation(self._elbo, self.model, self.guide, arguments, own, around)
            compiler = self._compiler if self._compiles else None
            program = Program(evaluation, flat, compiler, self.steps_per_call)
        except Exception as error:  # whatever stands in its way, eager goes on
            self._go_on_eagerly(why_not(error))
            return None
        self._ready.remove(ready)
        self._flat, self._num_captures = flat, self._num_captures + 1
        self._programs = [program, *self._programs][:MOST_PROGRAMS]
        return program

    def _take(self, program: Program, given: Given, args: Any, kwargs: Any) -> None:
        assert self._flat is not None
        if program.compilation.why_not:
            self._say(f"a graph is replayed, not compiled: {program.compilation.why_not}")
        state = torch.get_rng_state()
        buffers = [(buffer, buffer.clone()) for buffer in program.buffers]
        outcomes = attempted(program, self._flat, *given)
        if isinstance(outcomes, str):
            self._go_on_eagerly(outcomes)
            outcomes = []
        program.num_calls += 1
        taken = list(takewhile(lambda outcome: outcome.is_finite, outcomes))
        for outcome in taken:
            self._move(outcome, self._flat)
        program.num_steps += len(taken)
        if not outcomes or len(taken) < len(outcomes):
            torch.set_rng_state(state)
            program.draw_again(len(taken))
            put_back(buffers)
            is_stale = bool(outcomes) and not taken
            self._eager(args, kwargs, given if is_stale else None)
            if is_stale and math.isfinite(self._losses[-1]) and program in self._programs:
                self._programs.remove(program)

    def _move(self, outcome: Outcome, flat: FlatParameters) -> None:
        named: dict[str, Tensor] = {}
        for group, gradient in zip(flat.outside, outcome.gradients, strict=True):
            for parameter, part in zip(group.parameters, group.parts(gradient), strict=True):
                parameter.grad = part
            named |= dict(zip(group.names, group.parameters, strict=True))
        if self._has_terms:
            self._elbo._terms = outcome.terms
        if named:
            if hasattr(self._elbo, "show_gradients"):
                self._elbo.show_gradients(named)
            self.optim(set(named.values()))
            zero_grads(set(named.values()))
            flat.watch.remember_gradients()
        for group in flat.groups:
            group.count()
        if hasattr(self._elbo, "_count_evaluation"):
            self._elbo._count_evaluation()
        self._keep(outcome.loss, outcome)

    def _keep(self, loss: Any, record: Outcome | Evaluated) -> None:
        self._losses.append(loss)
        self._records.append(record)

    def _eager(self, args: Any, kwargs: Any, given: Given | None) -> None:
        with ParamCapture() as captured:
            loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        named = captured.parameters
        moved = {name: p for name, p in named.items() if p.grad is not None}
        parameters = set(named.values())
        self.optim(parameters)
        zero_grads(parameters)
        self._flat = None
        if given is not None and moved:
            self._prepare(given, named, moved)
        terms = Evaluated(self._elbo._terms if self._has_terms else None)
        self._keep(loss if isinstance(loss, tuple) else float(loss), terms)

    def _prepare(
        self, given: Given, named: Mapping[str, Tensor], moved: Mapping[str, Tensor]
    ) -> None:
        try:
            self._ready.add(ready_after(*given, named, moved, held_by(self, self._elbo)))
        except ValueError as error:
            self._go_on_eagerly(str(error))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_programs": [], "_flat": None, "_ready": Kinds(), "_records": []}

    def _go_on_eagerly(self, why: str) -> None:
        self._why_eager = why
        self._programs.clear()
        self._say(f"training goes on eagerly: {why}")

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(f"CompiledSVI: {what}", UserWarning, stacklevel=4)

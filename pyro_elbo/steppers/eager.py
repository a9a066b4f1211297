"""An eager step, and what it leaves behind for those after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor

from ..capture.arguments import Arguments
from ..capture.flat import FlatParameters
from ..capture.parameters import Watch
from ..capture.program import Outcome, Program
from ..capture.surroundings import Surroundings
from ..summary import Summary, summary_of

__all__ = [
    "Evaluated",
    "Kinds",
    "Ready",
    "attempted",
    "held_by",
    "kind_of",
    "ready_after",
    "why_not",
]

MOST_KINDS, MOST_LOST = 8, 32
_PROGRAMS = attrgetter("model", "guide")


class Evaluated:
    """An eager step, whose terms are made when they are asked for.

    Args:
        terms: What makes them, or themselves.
    """

    def __init__(self, terms: Any) -> None:
        self._terms = terms

    def terms(self) -> Any:
        """The terms."""
        if callable(self._terms):
            self._terms = self._terms()
        return self._terms

    def summary(self) -> Summary:
        """Their totals."""
        return summary_of(self.terms())


class Ready(NamedTuple):
    """An eager step that was taken, after which one like it can be captured.

    Args:
        kind: The kind of step.
        parameters: What had gradients, by name.
        asked: What the program asked for, by name.
        surroundings: What model and guide read beside their arguments.
        watch: The parameters as it left them.
    """

    kind: Any
    parameters: Mapping[str, Tensor]
    asked: Mapping[str, Tensor]
    surroundings: Surroundings
    watch: Watch

    def is_for(self, kind: Any, optim: Any) -> bool:
        """Whether nothing that a graph depends on has changed since."""
        has_states = all(p in optim.optim_objs for p in self.parameters.values())
        is_left = self.watch.are_same and self.watch.has_no_gradient
        return self.kind == kind and has_states and is_left and self.surroundings.hold


class Kinds:
    """The eager steps of each kind that none was captured of yet."""

    def __init__(self) -> None:
        self._ready: list[Ready] = []
        self._num_lost = 0

    def like(self, kind: Any, optim: Any) -> Ready | None:
        """An eager step, after which one of this kind can be captured now."""
        return next((ready for ready in self._ready if ready.is_for(kind, optim)), None)

    def add(self, ready: Ready) -> None:
        """Keep a step in place of what was kept of its kind.

        Raises:
            ValueError: Many were kept, and none was ever repeated.
        """
        others = [other for other in self._ready if other.kind != ready.kind]
        self._ready = [ready, *others][:MOST_KINDS]
        self._num_lost += len(others) == MOST_KINDS
        if self._num_lost > MOST_LOST:
            raise ValueError(
                "hardly two steps are of one kind; pass numbers that change as tensors, and "
                "batches of one shape"
            )

    def remove(self, ready: Ready) -> None:
        """Forget a step, now that one of its kind is captured."""
        self._ready.remove(ready)
        self._num_lost = 0


def held_by(stepper: Any, loss: Any) -> list[Callable[[], Iterable[Any]]]:
    """What says what every step hangs on: the programs, and the loss's settings."""
    own = vars(loss)
    settings = [name for name in own if name[0] != "_"]
    return [partial(_PROGRAMS, stepper), partial(map, own.get, settings), own.keys]


def ready_after(
    arguments: Arguments,
    weights: Sequence[Mapping[str, float]],
    named: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    held: Sequence[Callable[[], Iterable[Any]]],
) -> Ready:
    """What is kept of an eager step.

    Args:
        arguments: Its arguments.
        weights: Its weights.
        named: What it asked for, by name.
        moved: What had gradients, by name.
        held: What says what every step hangs on.

    Raises:
        ValueError: The program holds too much.
    """
    around = Surroundings(*held, arguments.callables.__iter__)
    watch = Watch(named, list(moved.values()))
    return Ready(kind_of(arguments, weights), moved, named, around, watch)


def attempted(
    program: Program,
    flat: FlatParameters,
    arguments: Arguments,
    weights: Sequence[Mapping[str, float]],
) -> list[Outcome] | str:
    """What the steps of a call gave; or why they cannot be taken, and then nothing has moved.

    Raises:
        Exception: One of several steps cannot be taken, after others.
    """
    take = program.check_take if program.is_due else program.take
    try:
        return take(arguments, flat, weights)
    except Exception as error:  # whatever a graph cannot do that the program can
        if program.size > 1:
            raise
        return why_not(error)


def why_not(error: Exception) -> str:
    """Why a step cannot be captured, in words."""
    if "value out of a tracing tensor" in str(error):
        return (
            "it cannot be captured: model, guide or loss looks at a value (a branch, .item(), "
            "float(...)), as Pyro's own losses do, and those of this package do not"
        )
    return f"it cannot be captured: {type(error).__name__}: {error}"


def kind_of(arguments: Arguments, weights: Sequence[Mapping[str, float]]) -> Any:
    """What kind of step one with these arguments and weights is."""
    return arguments.key, list(weights[0])

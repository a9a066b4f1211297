"""An eager step, and what it leaves behind for those after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..capture.arguments import Arguments
from ..capture.surroundings import Surroundings
from ..summary import Summary, summary_of

__all__ = ["Evaluated", "Ready", "kind_of"]


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
    """

    kind: Any
    parameters: Mapping[str, Tensor]
    asked: Mapping[str, Tensor]
    surroundings: Surroundings

    def is_for(self, kind: Any, optim: Any) -> bool:
        """Whether nothing that a graph depends on has changed since."""
        has_states = all(p in optim.optim_objs for p in self.parameters.values())
        return self.kind == kind and has_states and self.surroundings.hold


def kind_of(arguments: Arguments, weights: Sequence[Mapping[str, float]]) -> Any:
    """What kind of step one with these arguments and weights is."""
    return arguments.key, list(weights[0])

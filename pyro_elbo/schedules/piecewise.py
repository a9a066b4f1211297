"""A constant, and straight lines between given points."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .checks import between, count, show, store, weight

__all__ = ["Constant", "Piecewise"]


@dataclass(frozen=True, repr=False)
class Constant:
    r"""The same weight at every step: :math:`\beta(t) = v`.

    Args:
        value: The weight, finite and >= 0.

    Raises:
        ValueError: The value is negative, nan or infinite.
        TypeError: The value is not a number.

    Example:
        >>> from pyro_elbo.schedules import Constant
        >>> Constant(4)
        Constant(4)
        >>> Constant(4)(1000)
        4.0
    """

    value: float

    def __post_init__(self) -> None:
        store(self, value=weight(self.value, "value"))

    def __call__(self, step: int) -> float:
        """The weight at a step."""
        count(step, "step", least=0)
        return self.value

    @property
    def num_steps(self) -> int:
        """Always 0, as the weight never changes."""
        return 0

    def __repr__(self) -> str:
        return f"Constant({show(self.value)})"


@dataclass(frozen=True, repr=False, init=False)
class Piecewise:
    """Straight lines between given points, exact at each point.

    The weight is constant before the first point and after the last, as in :func:`numpy.interp`.
    A jump is two points one step apart: ``[(0, 4), (999, 4), (1000, 1)]``.

    Args:
        knots: Pairs of a step (an integer >= 0, strictly increasing) and the weight there (finite
            and >= 0); at least one.

    Raises:
        ValueError: There is no knot, the steps are negative or do not increase, or a weight is
            negative, nan or infinite.
        TypeError: A knot is not a pair of an integer and a number.

    Example:
        >>> from pyro_elbo.schedules import Piecewise
        >>> beta = Piecewise([(0, 4), (100, 4), (300, 1)])
        >>> beta
        Piecewise(4 at step 0, 4 at step 100, 1 at step 300)
        >>> beta(50), beta(200), beta(300), beta(9999)
        (4.0, 2.5, 1.0, 1.0)
    """

    knots: tuple[tuple[int, float], ...]

    def __init__(self, knots: Iterable[tuple[int, float]]) -> None:
        store(self, knots=tuple(as_knot(knot) for knot in knots))
        if not self.knots:
            raise ValueError("knots must have at least one pair (step, value), got none")
        for (before, _), (after, _) in pairwise(self.knots):
            if after <= before:
                raise ValueError(
                    f"the steps of knots must increase, but {after} follows {before}; "
                    "for a jump put two knots one step apart"
                )

    def __call__(self, step: int) -> float:
        """The weight at a step."""
        step = count(step, "step", least=0)
        after = bisect_right(self.knots, step, key=lambda knot: knot[0])
        if after in (0, len(self.knots)):
            return self.knots[max(after - 1, 0)][1]
        (left, start), (right, stop) = self.knots[after - 1 : after + 1]
        return between(start, stop, (step - left) / (right - left))

    @property
    def num_steps(self) -> int:
        """The step of the last knot."""
        return self.knots[-1][0]

    def __repr__(self) -> str:
        knots = ", ".join(f"{show(value)} at step {step}" for step, value in self.knots)
        return f"Piecewise({knots})"


def as_knot(knot: Any) -> tuple[int, float]:
    """A checked pair of a step and a weight."""
    try:
        step, value = knot
    except (TypeError, ValueError):
        raise TypeError(f"a knot is a pair (step, value), got {knot!r}") from None
    return count(step, "the step of a knot", least=0), weight(value, f"the value at step {step}")

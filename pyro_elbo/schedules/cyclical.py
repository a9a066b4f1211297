"""Warm-up, again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checks import between, count, number, plural, show, store, weight

__all__ = ["Cyclical"]


@dataclass(frozen=True, repr=False)
class Cyclical:
    r"""The same warm-up again and again: a linear ramp, then a hold, in every period.

    With :math:`\phi = (t \bmod P)/(rP)`, :math:`\beta(t) = a + (b - a)\min(\phi, 1)`.

    Args:
        start: The weight :math:`a` at the start of every cycle, finite and >= 0.
        stop: The weight :math:`b` after every ramp, and after the last cycle, finite and >= 0.
        period: The number :math:`P` of steps in a cycle, >= 2.
        ramp: The part :math:`r` of a cycle that the ramp takes, in (0, 1].
        num_cycles: How many cycles there are before the weight stays at ``stop``, >= 1; ``None``
            for no end.

    Raises:
        ValueError: A weight is negative, nan or infinite, or another argument out of its range.
        TypeError: A weight or ``ramp`` is not a number, or ``period`` or ``num_cycles`` not an
            integer.

    Example:
        >>> from pyro_elbo.schedules import Cyclical
        >>> beta = Cyclical(0, 1, period=100, num_cycles=4)
        >>> beta
        Cyclical(0 -> 1 in 4 cycles of 100 steps, ramp 0.5)
        >>> beta(0), beta(25), beta(50), beta(99), beta(100), beta(400)
        (0.0, 0.5, 1.0, 1.0, 0.0, 1.0)

    References:
        *Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing*
        (Fu et al., 2019), arXiv 1903.10145.
    """

    start: float
    stop: float
    period: int
    ramp: float = 0.5
    num_cycles: int | None = None

    def __post_init__(self) -> None:
        ramp = number(self.ramp, "ramp")
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp is a part of the period, in (0, 1]; got {ramp!r}")
        store(
            self,
            start=weight(self.start, "start"),
            stop=weight(self.stop, "stop"),
            period=count(self.period, "period", least=2),
            ramp=ramp,
        )
        if self.num_cycles is not None:
            store(self, num_cycles=count(self.num_cycles, "num_cycles", least=1))

    def __call__(self, step: int) -> float:
        """The weight at a step."""
        cycle, phase = divmod(count(step, "step", least=0), self.period)
        ramp_steps = self.ramp * self.period
        if phase >= ramp_steps or (self.num_cycles is not None and cycle >= self.num_cycles):
            return self.stop
        return between(self.start, self.stop, phase / ramp_steps)

    @property
    def num_steps(self) -> int | None:
        """The step at which the last ramp ends; ``None`` where the cycles never do."""
        if self.num_cycles is None:
            return None
        return (self.num_cycles - 1) * self.period + math.ceil(self.ramp * self.period)

    def __repr__(self) -> str:
        cycles = "endless cycles" if self.num_cycles is None else plural(self.num_cycles, "cycle")
        ends = f"{show(self.start)} -> {show(self.stop)}"
        return f"Cyclical({ends} in {cycles} of {self.period} steps, ramp {show(self.ramp)})"

"""One way from a start to a stop, in four shapes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass

from .checks import between, clamp, count, number, plural, show, store, weight

__all__ = ["Cosine", "Exponential", "Linear", "Ramp", "Sigmoid"]


@dataclass(frozen=True, repr=False)
class Ramp(ABC):
    """From ``start`` at step 0 to ``stop`` from step ``num_steps`` on; a subclass gives the shape.

    Args:
        start: The weight at step 0, finite and >= 0.
        stop: The weight from step ``num_steps`` on, finite and >= 0.
        num_steps: The number of steps from one to the other, >= 1.

    Raises:
        ValueError: A weight is negative, nan or infinite, or ``num_steps`` is less than 1.
        TypeError: A weight is not a number, or ``num_steps`` not an integer.

    Law:
        :meth:`at` is monotone, never outside the two ends, and exactly ``start`` at fraction 0.
    """

    start: float
    stop: float
    num_steps: int

    def __post_init__(self) -> None:
        store(
            self,
            start=weight(self.start, "start"),
            stop=weight(self.stop, "stop"),
            num_steps=count(self.num_steps, "num_steps", least=1),
        )

    def __call__(self, step: int) -> float:
        """The weight at a step."""
        step = count(step, "step", least=0)
        if step >= self.num_steps:
            return self.stop
        return self.at(step / self.num_steps)

    @abstractmethod
    def at(self, fraction: float) -> float:
        """The weight after a fraction of the steps, in [0, 1]."""

    def __repr__(self) -> str:
        ends = f"{show(self.start)} -> {show(self.stop)}"
        return f"{type(self).__name__}({ends} over {plural(self.num_steps, 'step')})"


@dataclass(frozen=True, repr=False)
class Linear(Ramp):
    r"""A straight line: :math:`\beta(t) = a + (b - a)\,t/T`.

    Args:
        start: The weight :math:`a` at step 0, finite and >= 0.
        stop: The weight :math:`b` from step ``num_steps`` on, finite and >= 0.
        num_steps: The number :math:`T` of steps from one to the other, >= 1.

    Raises:
        ValueError: A weight is negative, nan or infinite, or ``num_steps`` is less than 1.
        TypeError: A weight is not a number, or ``num_steps`` not an integer.

    Example:
        >>> from pyro_elbo.schedules import Linear
        >>> beta = Linear(4, 1, num_steps=1000)
        >>> beta
        Linear(4 -> 1 over 1000 steps)
        >>> beta(0), beta(500), beta(1000), beta(5000)
        (4.0, 2.5, 1.0, 1.0)
    """

    def at(self, fraction: float) -> float:
        """The weight after a fraction of the steps, in [0, 1]."""
        return between(self.start, self.stop, fraction)


@dataclass(frozen=True, repr=False)
class Cosine(Ramp):
    r"""Half a cosine, flat at both ends: :math:`\beta(t) = a + (b - a)\,(1 - \cos(\pi t/T))/2`.

    Args:
        start: The weight :math:`a` at step 0, finite and >= 0.
        stop: The weight :math:`b` from step ``num_steps`` on, finite and >= 0.
        num_steps: The number :math:`T` of steps from one to the other, >= 1.

    Raises:
        ValueError: A weight is negative, nan or infinite, or ``num_steps`` is less than 1.
        TypeError: A weight is not a number, or ``num_steps`` not an integer.

    Example:
        >>> from pyro_elbo.schedules import Cosine
        >>> beta = Cosine(0, 1, num_steps=100)
        >>> beta
        Cosine(0 -> 1 over 100 steps)
        >>> beta(0), round(beta(50), 6), beta(100)
        (0.0, 0.5, 1.0)

    References:
        *SGDR: Stochastic Gradient Descent with Warm Restarts* (Loshchilov & Hutter, 2016),
        arXiv 1608.03983.
    """

    def at(self, fraction: float) -> float:
        """The weight after a fraction of the steps, in [0, 1]."""
        return between(self.start, self.stop, math.sin(0.5 * math.pi * fraction) ** 2)


@dataclass(frozen=True, repr=False)
class Sigmoid(Ramp):
    r"""A logistic curve, rescaled so that both ends are exact.

    With :math:`s(f) = \tanh(k(f - 1/2)/2)`, which is the logistic function stretched to (-1, 1),
    :math:`\beta(t) = a + (b - a)\,(1 + s(t/T)/s(1))/2`.

    Args:
        start: The weight :math:`a` at step 0, finite and >= 0.
        stop: The weight :math:`b` from step ``num_steps`` on, finite and >= 0.
        num_steps: The number :math:`T` of steps from one to the other, >= 1.
        steepness: :math:`k` > 0; near 0 it is a straight line, large it is a jump in the middle.

    Raises:
        ValueError: A weight is negative, nan or infinite, ``num_steps`` is less than 1, or
            ``steepness`` is not finite and positive.
        TypeError: A weight or ``steepness`` is not a number, or ``num_steps`` not an integer.

    Example:
        >>> from pyro_elbo.schedules import Sigmoid
        >>> beta = Sigmoid(0, 1, num_steps=100)
        >>> beta
        Sigmoid(0 -> 1 over 100 steps, steepness 10)
        >>> beta(0), round(beta(25), 3), beta(50), beta(100)
        (0.0, 0.07, 0.5, 1.0)
    """

    _: KW_ONLY
    steepness: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        store(self, steepness=number(self.steepness, "steepness"))
        if not (math.isfinite(self.steepness) and math.tanh(self.steepness / 4) > 0):
            raise ValueError(f"steepness must be finite and > 0, got {self.steepness!r}")

    def at(self, fraction: float) -> float:
        """The weight after a fraction of the steps, in [0, 1]."""
        height = math.tanh(self.steepness * (fraction - 0.5) / 2) / math.tanh(self.steepness / 4)
        return between(self.start, self.stop, 0.5 * (1 + height))

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, steepness {show(self.steepness)})"


@dataclass(frozen=True, repr=False)
class Exponential(Ramp):
    r"""The same ratio at every step: :math:`\beta(t) = a\,(b/a)^{t/T}`.

    Args:
        start: The weight :math:`a` at step 0, finite and > 0.
        stop: The weight :math:`b` from step ``num_steps`` on, finite and > 0.
        num_steps: The number :math:`T` of steps from one to the other, >= 1.

    Raises:
        ValueError: A weight is 0, negative, nan or infinite, or ``num_steps`` is less than 1.
        TypeError: A weight is not a number, or ``num_steps`` not an integer.

    Example:
        >>> from pyro_elbo.schedules import Exponential
        >>> beta = Exponential(100, 1, num_steps=10)
        >>> beta
        Exponential(100 -> 1 over 10 steps)
        >>> beta(0), round(beta(5), 6), beta(10)
        (100.0, 10.0, 1.0)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("start", self.start), ("stop", self.stop)):
            if value == 0:
                raise ValueError(
                    f"{name} must be > 0, as no ratio leads from or to 0; "
                    "use Linear or Cosine for an end at 0"
                )

    def at(self, fraction: float) -> float:
        """The weight after a fraction of the steps, in [0, 1]."""
        return clamp(self.start ** (1 - fraction) * self.stop**fraction, self.start, self.stop)

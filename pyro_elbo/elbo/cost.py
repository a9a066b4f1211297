"""One additive part of the bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ..site_terms import Atom

__all__ = ["Cost"]


@dataclass(eq=False)
class Cost:
    """One additive part of the ELBO, without the weight.

    Args:
        magnitude: The number, in nats, over the plates of ``stack`` (and the dims of enumeration,
            left of them); its gradient is the one that the estimator takes at the site itself.
        stack: The plates (Pyro's frames).
        scale: The scale in the value.
        masked: Whether a mask is in the value.
        dims: The symbols of its dims, where sites are enumerated.
        event_dim: How many dims on its right are those of one event.
        sign: Whether the ELBO has it with a plus (1) or a minus (-1).
    """

    magnitude: Tensor
    stack: tuple[Any, ...]
    scale: Any
    masked: bool
    dims: Mapping[int, str] = field(default_factory=dict)
    event_dim: int = 0
    sign: int = 1

    @cached_property
    def value(self) -> Any:
        """The magnitude with its sign."""
        if self.sign == 1:
            return self.magnitude
        value: Any = -self.magnitude
        if hasattr(self.magnitude, "_pyro_dims"):
            value._pyro_dims = self.magnitude._pyro_dims
        return value

    def negated(self) -> Cost:
        """The same number with the other sign."""
        return replace(self, sign=-self.sign)

    def with_value(self, value: Tensor) -> Cost:
        """The same part of the ELBO with another number."""
        return replace(self, magnitude=value, sign=1)

    def add_to(self, total: Tensor | None, sign: int = 1) -> Tensor:
        """A total (``None`` for nothing yet) and the sum of the value, times a sign."""
        summed = self.magnitude.sum() if self.magnitude.dim() else self.magnitude
        if total is None:
            return summed if self.sign == sign else -summed
        return total + summed if self.sign == sign else total - summed

    def atom(self, sign: int = 1) -> Atom:
        """The value, times a sign, as a record that no later change of a parameter reaches."""
        value = self.magnitude.detach()
        if sign != self.sign:
            value = -value
        elif self.magnitude.is_leaf or self.magnitude._is_view():
            value = value.clone()
        return Atom(value, self.stack, self.scale, self.masked, self.event_dim)

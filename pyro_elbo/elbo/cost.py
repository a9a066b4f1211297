"""One additive part of the bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..site_terms import Atom

__all__ = ["Cost"]


@dataclass(frozen=True, eq=False)
class Cost:
    """One additive part of the ELBO, with its sign in it, without the weight.

    Args:
        value: The number, in nats, over the plates of ``stack`` (and the dims of enumeration, left
            of them); its gradient is the one that the estimator takes at the site itself.
        stack: The plates (Pyro's frames).
        scale: The scale in the value.
        masked: Whether a mask is in the value.
        dims: The symbols of its dims, where sites are enumerated.
        event_dim: How many dims on its right are those of one event.
    """

    value: Tensor
    stack: tuple[Any, ...]
    scale: Any
    masked: bool
    dims: Mapping[int, str] = field(default_factory=dict)
    event_dim: int = 0

    def negated(self) -> Cost:
        """The same number with the other sign."""
        value: Any = -self.value
        if hasattr(self.value, "_pyro_dims"):
            value._pyro_dims = self.value._pyro_dims
        return replace(self, value=value)

    def atom(self, sign: int = 1) -> Atom:
        """The value, times a sign, as a record that no later change of a parameter reaches."""
        value = self.value.detach()
        value = value.clone() if sign == 1 else -value
        return Atom(value, self.stack, self.scale, self.masked, self.event_dim)

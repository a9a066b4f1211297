"""One additive part of the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..site_terms import Atom

__all__ = ["Cost"]


@dataclass(frozen=True, eq=False)
class Cost:
    """One additive part of the ELBO, with its sign in it, without the weight.

    Args:
        value: The number, in nats, over the plates of ``stack``.
        differentiable: What is differentiated; for a reparameterised site the value itself.
        stack: The plates (Pyro's frames).
        scale: The scale in the value.
        masked: Whether a mask is in the value.
    """

    value: Tensor
    differentiable: Tensor
    stack: tuple[Any, ...]
    scale: Any
    masked: bool

    def atom(self, sign: int = 1) -> Atom:
        """The value, times a sign, as a record that no later change of a parameter reaches."""
        value = self.value.detach()
        return Atom(value.clone() if sign == 1 else -value, self.stack, self.scale, self.masked)

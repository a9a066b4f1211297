"""The record of a program, and what the programs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

Reference = Literal["Trace_ELBO", "TraceEnum_ELBO", "brute force"]
How = Literal["sampled", "parallel", "sequential", "model"]


@dataclass(frozen=True)
class Program:
    """A model, its guide, their data, and who is right about the gradient of the bound.

    `plates` is the `max_plate_nesting`; `exact` says that nothing is sampled.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    reference: Reference = "Trace_ELBO"
    plates: int = 1
    exact: bool = False

    def evaluate(self, elbo: Any) -> dict[str, Tensor]:
        """The loss, and the gradient of each unconstrained parameter."""
        row = {"loss": torch.as_tensor(elbo.loss_and_grads(self.model, self.guide, *self.args))}
        for name, parameter in pyro.get_param_store().named_parameters():
            gradient = parameter.grad
            row[name] = torch.zeros_like(parameter) if gradient is None else gradient
            parameter.grad = None
        return row

    def sample(self, elbo: Any, count: int, seed: int) -> dict[str, Tensor]:
        """So many evaluations, stacked, at the initial parameters."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        rows = [self.evaluate(elbo) for _ in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def wave(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Values without pattern, the same at every call."""
    size = torch.Size(shape).numel()
    return scale * (torch.arange(size) * 1.7 + 0.3).sin().reshape(shape) + shift


def reference_of(how: How) -> Reference:
    """Pyro's loss for a discrete site that is treated so."""
    return "Trace_ELBO" if how == "sampled" else "TraceEnum_ELBO"


def guide_infer(how: How) -> dict[str, str]:
    """The `infer` of a discrete site in the guide."""
    return {"enumerate": how} if how in ("parallel", "sequential") else {}


def model_infer(how: How) -> dict[str, str]:
    """The `infer` of a discrete site in the model."""
    return {"enumerate": "parallel"} if how == "model" else {}

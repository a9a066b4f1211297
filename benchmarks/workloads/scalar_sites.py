"""A chain of scalar sites, as many as asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .workload import ByHand, Workload, auto_normal, locs_and_scales, sampled

__all__ = ["CORRELATION", "TOTAL", "scalar_sites"]

CORRELATION, TOTAL = 0.9, 3.0


def loss(parameters: Sequence[Tensor], y: Tensor) -> Tensor:
    """Minus the sampled ELBO, site by site as the model, without constants."""
    values, entropy = sampled(parameters)
    error, total, last = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for x in values:
        error = error + 0.5 * (x - CORRELATION * last) ** 2
        total, last = total + x, x
    return error + 0.5 * (y - total) ** 2 - entropy


def scalar_sites(num_sites: int = 100) -> Workload:
    """An autoregression, of which the sum is observed."""

    def model(y: Tensor) -> None:
        x, total = torch.zeros(()), torch.zeros(())
        for i in range(num_sites):
            x = pyro.sample(f"x_{i}", dist.Normal(CORRELATION * x, 1.0))
            total = total + x
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)

    shapes: list[tuple[int, ...]] = [()] * num_sites
    by_hand = ByHand(lambda: locs_and_scales(*shapes), loss, 0.5 * math.log(2 * math.pi))
    return Workload(
        "scalar_sites",
        model,
        lambda: auto_normal(model),
        (torch.tensor(TOTAL),),
        by_hand,
        max_plate_nesting=0,
    )

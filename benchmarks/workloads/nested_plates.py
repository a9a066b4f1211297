"""Plates in one another, as many as asked for, with a site in each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .workload import ByHand, Workload, auto_normal, generator, locs_and_scales, sampled

__all__ = ["nested_plates"]

PLATE_SIZE = 4


def loss(parameters: Sequence[Tensor], y: Tensor) -> Tensor:
    """Minus the sampled ELBO, without constants."""
    values, entropy = sampled(parameters)
    error = 0.5 * (values[0] ** 2).sum()
    for parent, child in zip(values, [*values[1:], y], strict=True):
        error = error + 0.5 * ((child - parent) ** 2).sum()
    return error - entropy


def nested_plates(num_plates: int = 4) -> Workload:
    """A walk from the outermost plate to the data in the innermost."""
    shapes = [(PLATE_SIZE,) * depth for depth in range(num_plates + 1)]

    def model(y: Tensor) -> None:
        x = pyro.sample("x_0", dist.Normal(0.0, 1.0))
        with ExitStack() as opened:
            for depth in range(1, num_plates + 1):
                opened.enter_context(pyro.plate(f"plate_{depth}", PLATE_SIZE, dim=-depth))
                x = pyro.sample(f"x_{depth}", dist.Normal(x, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    y = torch.randn(shapes[-1], generator=generator())
    by_hand = ByHand(
        lambda: locs_and_scales(*shapes), loss, 0.5 * y.numel() * math.log(2 * math.pi)
    )
    return Workload(
        "nested_plates",
        model,
        lambda: auto_normal(model),
        (y,),
        by_hand,
        max_plate_nesting=num_plates,
    )

"""Plates in one another, as many as asked for, with a site in each."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpyro
import numpyro.distributions as dist

from .guides import auto_normal

__all__ = ["program"]


def program(num_plates: int = 4) -> tuple[Any, Any]:
    """A walk from the outermost plate to the data in the innermost."""

    def model(y: Any) -> None:
        x = numpyro.sample("x_0", dist.Normal(0.0, 1.0))
        with ExitStack() as opened:
            for depth in range(1, num_plates + 1):
                opened.enter_context(numpyro.plate(f"plate_{depth}", y.shape[-depth], dim=-depth))
                x = numpyro.sample(f"x_{depth}", dist.Normal(x, 1.0))
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    return model, auto_normal(model)

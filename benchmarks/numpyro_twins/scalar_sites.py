"""A chain of scalar sites, as many as asked for."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist

from .guides import auto_normal

__all__ = ["program"]


def program(num_sites: int = 100) -> tuple[Any, Any]:
    """An autoregression, of which the sum is observed."""

    def model(y: Any) -> None:
        x, total = 0.0, 0.0
        for i in range(num_sites):
            x = numpyro.sample(f"x_{i}", dist.Normal(0.9 * x, 1.0))
            total = total + x
        numpyro.sample("y", dist.Normal(total, 1.0), obs=y)

    return model, auto_normal(model)

"""Eight schools: the effects of coaching in parallel experiments."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist

from .guides import auto_normal

__all__ = ["program"]


def model(y: Any, error: Any) -> None:
    """Each school's effect is drawn around a common one."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, error), obs=y)


def program() -> tuple[Any, Any]:
    """Model and guide."""
    return model, auto_normal(model)

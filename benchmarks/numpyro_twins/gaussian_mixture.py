"""A mixture of Gaussians whose assignments are summed out by its density."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp

from .guides import auto_normal

__all__ = ["program"]

COMPONENTS = 5


def model(x: Any) -> None:
    """Weights, a common scale, and locations."""
    num, features = x.shape
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(COMPONENTS)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("components", COMPONENTS):
        locs = numpyro.sample("locs", dist.Normal(jnp.zeros(features), 5.0).to_event(1))
    components = dist.Normal(locs, scale).to_event(1)
    with numpyro.plate("data", num):
        mixture = dist.MixtureSameFamily(dist.Categorical(weights), components)
        numpyro.sample("x", mixture, obs=x)


def program() -> tuple[Any, Any]:
    """Model and guide."""
    return model, auto_normal(model)

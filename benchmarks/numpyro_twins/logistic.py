"""Bayesian logistic regression, on all data or on a subsample."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp

from .guides import auto_diagonal_normal

__all__ = ["program", "regression"]


def regression(subsample: int | None) -> tuple[Any, Any]:
    """Model and guide, of so many data at a step."""

    def model(x: Any, y: Any) -> None:
        weights = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[-1]), 1.0).to_event(1))
        bias = numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(x), subsample_size=subsample) as indices:
            if subsample:
                x, y = x[indices], y[indices]
            numpyro.sample("y", dist.Bernoulli(logits=x @ weights + bias), obs=y)

    return model, auto_diagonal_normal(model)


def program() -> tuple[Any, Any]:
    """All data at each step."""
    return regression(None)

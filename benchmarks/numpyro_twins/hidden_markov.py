"""A hidden Markov model, its states summed out by the forward algorithm."""

from __future__ import annotations

from typing import Any

import jax
import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp

from .guides import auto_normal

__all__ = ["program"]

STATES = 3


def log_likelihood(logits: Any, locs: Any, x: Any) -> Any:
    """Of each sequence."""
    transition = jax.nn.log_softmax(logits, -1)
    emission = dist.Normal(locs, 1.0).log_prob(x[..., None])

    def forward(last: Any, now: Any) -> Any:
        return jax.nn.logsumexp(last[..., None] + transition, -2) + now, None

    last, _ = jax.lax.scan(forward, transition[0] + emission[0], emission[1:])
    return jax.nn.logsumexp(last, -1)


def model(x: Any) -> None:
    """Transitions, and a location for each state."""
    with numpyro.plate("states", STATES):
        logits = numpyro.sample("logits", dist.Normal(jnp.zeros(STATES), 1.0).to_event(1))
        locs = numpyro.sample("locs", dist.Normal(0.0, 3.0))
    with numpyro.plate("sequences", x.shape[-1]):
        numpyro.factor("x", log_likelihood(logits, locs, x))


def program() -> tuple[Any, Any]:
    """Model and guide."""
    return model, auto_normal(model)

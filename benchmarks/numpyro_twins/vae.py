"""A variational autoencoder of binary images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpyro
import numpyro.distributions as dist
from jax import numpy as jnp

from .layers import initial, multilayer

__all__ = ["NUM_PIXELS", "NUM_UNITS", "autoencoder", "program"]

NUM_PIXELS, NUM_UNITS = 784, 20


def autoencoder(hidden: Sequence[int]) -> tuple[Any, Any]:
    """Model and guide of so many hidden units."""
    encoder = initial(0, NUM_PIXELS, *hidden, 2 * NUM_UNITS)
    decoder = initial(1, NUM_UNITS, *reversed(hidden), NUM_PIXELS)

    def model(x: Any) -> None:
        layers = numpyro.param("decoder", decoder)
        with numpyro.plate("data", len(x)):
            prior = dist.Normal(jnp.zeros(NUM_UNITS), 1.0).to_event(1)
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Bernoulli(logits=multilayer(layers, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        layers = numpyro.param("encoder", encoder)
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(multilayer(layers, x), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    return model, guide


def program(batch: int = 128) -> tuple[Any, Any]:
    """784 pixels, 400 hidden units, 20 latents."""
    return autoencoder([400])

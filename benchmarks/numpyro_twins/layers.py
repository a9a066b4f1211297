"""Multilayer perceptrons as lists of weights and biases."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import jax
from jax import Array
from jax import numpy as jnp

__all__ = ["Layers", "initial", "multilayer"]

Layers = list[tuple[Array, Array]]


def initial(seed: int, *sizes: int) -> Layers:
    """PyTorch's initial range for the weights, and biases of 0."""
    keys = jax.random.split(jax.random.PRNGKey(seed), len(sizes) - 1)
    return [
        (
            jax.random.uniform(key, pair, minval=-1, maxval=1) / math.sqrt(pair[0]),
            jnp.zeros(pair[1]),
        )
        for key, pair in zip(keys, pairwise(sizes), strict=True)
    ]


def multilayer(layers: Layers, values: Any) -> Array:
    """Softplus between the layers."""
    for weights, bias in layers[:-1]:
        values = jax.nn.softplus(values @ weights + bias)
    weights, bias = layers[-1]
    return values @ weights + bias

"""Steps of NumPyro."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer import SVI, Trace_ELBO

from ..data import PRODUCTS, arrays_of
from .stepper import Cell, Stepper

__all__ = ["matrix_products", "scan", "update"]

LEARNING_RATE, SCANNED = 1e-3, 50


def start(cell: Cell) -> tuple[SVI, Any, Any]:
    """An SVI, its state, and its arguments."""
    twin = import_module(f"..numpyro_twins.{cell.workload}", __package__)
    model, guide = twin.program(*cell.sizes)
    arguments = [jax.numpy.asarray(array) for array in arrays_of(cell)]
    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO(cell.particles))
    return svi, svi.init(jax.random.PRNGKey(0), *arguments), arguments


def update(cell: Cell) -> Stepper:
    """One update at a time, jitted, its loss read."""
    svi, state, arguments = start(cell)
    step = jax.jit(lambda state: svi.update(state, *arguments))
    kept = [state]

    def call() -> float:
        kept[0], loss = step(kept[0])
        return float(loss)

    return Stepper(call)


def scan(cell: Cell) -> Stepper:
    """Fifty updates in one compiled loop, their losses read."""
    svi, state, arguments = start(cell)

    def one(state: Any, _: None) -> Any:
        return svi.update(state, *arguments)

    steps = jax.jit(lambda state: jax.lax.scan(one, state, None, length=SCANNED))
    kept = [state]

    def call() -> Any:
        kept[0], losses = steps(kept[0])
        return losses.block_until_ready()

    return Stepper(call, SCANNED)


def matrix_products(cell: Cell) -> Stepper:
    """Nothing but the products of the small VAE."""
    rng = np.random.default_rng(0)
    pairs = [
        (rng.standard_normal((n, k), np.float32), rng.standard_normal((k, m), np.float32))
        for n, k, m in PRODUCTS
    ]
    pairs = jax.device_put(pairs)
    multiply = jax.jit(lambda pairs: [a @ b for a, b in pairs])
    return Stepper(lambda: jax.block_until_ready(multiply(pairs)))

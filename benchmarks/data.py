"""A workload's arguments as arrays, for libraries that are not to be measured beside PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .variants import Cell

__all__ = ["FOLDER", "PRODUCTS", "arrays_of", "write_arrays"]

FOLDER = "PYRO_ELBO_BENCH_DATA"
"""The environment variable that says where they are."""

PRODUCTS = [
    *[(128, 784, 400), (128, 400, 40), (128, 20, 400), (128, 400, 784)],
    *[(784, 128, 400), (400, 128, 40), (20, 128, 400), (400, 128, 784)],
    *[(128, 40, 400), (128, 400, 20), (128, 784, 400)],
]
"""Rows, inner size and columns of the matrix products of a step of the small VAE.

Forward, then the gradients of the weights, and those of the layers' inputs but the images.
"""


def file_of(cell: Cell) -> Path:
    """The file of a cell's arguments."""
    return Path(os.environ[FOLDER]) / f"{cell.workload}_{cell.size or 'own'}.npz"


def write_arrays(cell: Cell) -> None:
    """Write the arguments of a cell's workload, where they are not there yet."""
    from .workloads import SIZED

    if not file_of(cell).exists():
        arguments = SIZED[cell.workload](*cell.sizes).arguments
        np.savez(file_of(cell), *[argument.numpy() for argument in arguments])


def arrays_of(cell: Cell) -> list[np.ndarray]:
    """The arguments."""
    with np.load(file_of(cell)) as arrays:
        return [arrays[name] for name in arrays.files]

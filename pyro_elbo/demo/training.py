"""Train the autoencoder under one loss, and remember what the bound was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypeAlias

import numpy as np
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch import Tensor

from .. import History, TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO, fit, schedules
from ..training.run import Callback
from .data import binarise
from .vae import VAE

__all__ = ["TERMS", "Batches", "Curves", "Loss", "num_batches", "runs", "train"]

Loss: TypeAlias = TraceKL_ELBO | TraceEntropy_ELBO | TraceGap_ELBO

TERMS = (
    "elbo",
    "objective",
    "reconstruction",
    "kl",
    "weighted_kl",
    "entropy",
    "expected_log_joint",
    "expected_log_prior",
)
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
LEARNING_RATE_DECAY = 0.1
NUM_POINTS = 200


@dataclass(frozen=True)
class Curves:
    """The terms over training, each point a mean over the steps since the one before.

    Args:
        step: The step at which each point ends, from 1.
        beta: The weight at that step.
        terms: Each term in nats per image.
        seconds_per_step: The median.
    """

    step: list[int]
    beta: list[float]
    terms: dict[str, list[float]]
    seconds_per_step: float

    @classmethod
    def of(cls, history: History) -> Curves:
        """About two hundred points of a run."""
        width = ceil(len(history) / NUM_POINTS)
        starts = np.arange(0, len(history), width)
        ends = np.minimum(starts + width, len(history))
        per_image = {name: history[name] / history["num_data"] for name in TERMS}
        return cls(
            ends.tolist(),
            history["beta"][ends - 1].tolist(),
            {
                name: (np.add.reduceat(values, starts) / (ends - starts)).tolist()
                for name, values in per_image.items()
            },
            float(np.median(history["seconds"])),
        )


class Batches:
    """Minibatches of images in black and white, in another order and binarised anew in each pass.

    Args:
        intensities: Shape [n, pixels], within 0 and 1.
        generator: Orders and binarises.
    """

    def __init__(self, intensities: Tensor, generator: torch.Generator) -> None:
        self._intensities, self._generator = intensities, generator

    def __len__(self) -> int:
        return num_batches(self._intensities)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self._intensities), generator=self._generator)
        for indices in order.split(BATCH_SIZE):
            yield binarise(self._intensities[indices], self._generator)


def runs(num_steps: int) -> dict[str, Loss]:
    """The losses to compare, by name; the annealed weights arrive at 1 half-way through."""
    half = max(1, num_steps // 2)
    return {
        "TraceKL": TraceKL_ELBO(),
        "TraceEntropy": TraceEntropy_ELBO(),
        "TraceGap": TraceGap_ELBO(),
        "TraceKL, β = 4": TraceKL_ELBO(beta=4.0),
        "TraceKL, β 4 → 1": TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=half)),
        "TraceKL, β 0 → 1": TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=half)),
    }


def num_batches(intensities: Tensor) -> int:
    """Steps in an epoch."""
    return ceil(len(intensities) / BATCH_SIZE)


def train(
    vae: VAE, elbo: Loss, batches: Batches, num_epochs: int, callbacks: Sequence[Callback]
) -> Curves:
    """Fit the autoencoder, in place, with :func:`pyro_elbo.fit`."""
    decay = LEARNING_RATE_DECAY ** (1 / (num_epochs * len(batches)))
    optimiser = ClippedAdam({"lr": LEARNING_RATE, "lrd": decay})
    svi = SVI(vae.model, vae.guide, optimiser, loss=elbo)
    history = fit(svi, batches=batches, num_epochs=num_epochs, callbacks=callbacks, progress=False)
    return Curves.of(history)

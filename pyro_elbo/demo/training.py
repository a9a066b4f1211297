"""Train the autoencoder under one loss, and remember what the bound was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean, median
from time import perf_counter
from typing import Any, TypeAlias

import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam
from torch import Tensor

from .. import ELBOTerms, TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO, schedules
from .data import Images, binarise
from .vae import VAE

__all__ = ["TERMS", "Curves", "Loss", "num_batches", "runs", "train"]

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


@dataclass
class Curves:
    """The terms over training, each point a mean over the steps since the one before.

    Args:
        step: The step at which each point ends, from 1.
        beta: The weight at that step.
        terms: Each term in nats per image.
        seconds: How long each step took.
    """

    step: list[int] = field(default_factory=list)
    beta: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TERMS})
    seconds: list[float] = field(default_factory=list)

    @property
    def seconds_per_step(self) -> float:
        """The median."""
        return median(self.seconds)

    def add(self, beta: float, window: list[dict[str, float]]) -> None:
        """Append the mean of a window of steps."""
        self.step.append(len(self.seconds))
        self.beta.append(beta)
        for name, values in self.terms.items():
            values.append(fmean(terms[name] for terms in window))


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


def num_batches(images: Images) -> int:
    """Steps in an epoch."""
    return ceil(len(images.train) / BATCH_SIZE)


def train(
    vae: VAE,
    elbo: Loss,
    images: Images,
    *,
    num_epochs: int,
    generator: torch.Generator,
    on_point: Callable[[int, Curves], None],
    on_step: Callable[[int], Any] = lambda step: None,
) -> Curves:
    """Fit the autoencoder with :class:`pyro.infer.SVI`, the pixels binarised anew in each epoch.

    Args:
        vae: What is trained, in place.
        elbo: The loss.
        images: The data.
        num_epochs: Passes through the training images.
        generator: Orders and binarises the images.
        on_point: Called with the steps since the last call, and the curves so far.
        on_step: Called with the number of steps taken, from 1.
    """
    num_steps = num_epochs * num_batches(images)
    decay = LEARNING_RATE_DECAY ** (1 / num_steps)
    optimiser = ClippedAdam({"lr": LEARNING_RATE, "lrd": decay})
    svi = SVI(vae.model, vae.guide, optimiser, loss=elbo)
    curves = Curves()
    window: list[dict[str, float]] = []
    for x in _batches(images.train, num_epochs, generator):
        start = perf_counter()
        svi.step(x)
        curves.seconds.append(perf_counter() - start)
        window.append(_per_image(elbo.terms, len(x)))
        on_step(len(curves.seconds))
        if len(window) == ceil(num_steps / NUM_POINTS) or len(curves.seconds) == num_steps:
            curves.add(elbo.terms.beta, window)
            on_point(len(window), curves)
            window = []
    return curves


def _batches(intensities: Tensor, num_epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(num_epochs):
        order = torch.randperm(len(intensities), generator=generator)
        for indices in order.split(BATCH_SIZE):
            yield binarise(intensities[indices], generator)


def _per_image(terms: ELBOTerms, num_images: int) -> dict[str, float]:
    return {name: float(getattr(terms, name)) / num_images for name in TERMS}

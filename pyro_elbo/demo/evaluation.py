"""How good a trained autoencoder is on images that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from .. import TraceKL_ELBO
from .vae import VAE

__all__ = ["HeldOut", "evaluate"]

ACTIVE_VARIANCE = 0.01
NUM_SAMPLES = 30_000
CHUNK = 256


@dataclass(frozen=True)
class HeldOut:
    r"""Means over held-out images, in nats per image, at :math:`\beta = 1`.

    Args:
        elbo: The bound.
        elbo_standard_error: Its Monte Carlo error.
        importance_bound: The tighter importance-weighted bound of the same samples.
        reconstruction: Expected log-likelihood.
        kl: KL from the prior.
        entropy: Entropy of the guide.
        unit_kl: The KL of each latent unit.
        unit_active: Whether the variance of each unit's posterior mean exceeds 0.01.

    References:
        *Importance Weighted Autoencoders* (Burda, Grosse & Salakhutdinov, 2015), arXiv 1509.00519.
    """

    elbo: float
    elbo_standard_error: float
    importance_bound: float
    reconstruction: float
    kl: float
    entropy: float
    unit_kl: list[float]
    unit_active: list[bool]

    @property
    def active_units(self) -> int:
        """How many units carry information about the image."""
        return sum(self.unit_active)


@torch.no_grad()
def evaluate(vae: VAE, x: Tensor) -> HeldOut:
    """The terms of binary images, shape [n, pixels], with about 30,000 samples altogether.

    Every run is judged by the same estimator, whatever loss it was trained with.
    """
    particles = max(10, min(100, NUM_SAMPLES // len(x)))
    elbo = TraceKL_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    chunks = [elbo.decompose(vae.model, vae.guide, chunk) for chunk in x.split(CHUNK)]

    def per_image(name: str) -> float:
        return float(sum(getattr(terms, name) for terms in chunks)) / len(x)

    variance = sum(float(terms.standard_error["elbo"]) ** 2 for terms in chunks)
    posterior = vae.posterior(x)
    return HeldOut(
        elbo=per_image("elbo"),
        elbo_standard_error=variance**0.5 / len(x),
        importance_bound=per_image("importance_bound"),
        reconstruction=per_image("reconstruction"),
        kl=per_image("kl"),
        entropy=per_image("entropy"),
        unit_kl=kl_divergence(posterior, vae.prior(x)).mean(0).tolist(),
        unit_active=(posterior.mean.var(0) > ACTIVE_VARIANCE).tolist(),
    )

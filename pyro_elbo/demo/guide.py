"""Is the first run's guide any good: its gap over training, and a report at the end."""

from __future__ import annotations

from math import ceil
from typing import Any

from torch import Tensor

from .. import diagnostics, evidence
from ..training import TrackEvidence
from .vae import VAE

__all__ = ["gap_tracker", "report_of"]

NUM_POINTS = 8
NUM_IMAGES = 100
NUM_SAMPLES = 200


def gap_tracker(vae: VAE, x: Tensor, num_steps: int) -> TrackEvidence:
    """What follows ELBO and evidence of some images through a run, eight times.

    Args:
        vae: What is trained.
        x: Held-out binary images, shape [n, pixels]; the first hundred are looked at.
        num_steps: Steps of the run.
    """
    method = evidence.ImportanceWeighting(NUM_SAMPLES, progress=False)
    every = ceil(num_steps / NUM_POINTS)
    return TrackEvidence(
        method, every, vae.model, vae.guide, x[:NUM_IMAGES], num_samples=NUM_SAMPLES
    )


def report_of(vae: VAE, x: Tensor) -> Any:
    """The report on the encoder as a guide, on held-out binary images, shape [n, pixels]."""
    method = evidence.ImportanceWeighting(progress=False)
    return diagnostics.guide_report(vae.model, vae.guide, x, estimator=method)

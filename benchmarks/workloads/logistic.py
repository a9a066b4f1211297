"""Bayesian logistic regression, on all data or on a subsample."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from .workload import ByHand, Workload, auto_diagonal_normal, generator, locs_and_scales, sampled

__all__ = ["NUM_DATA", "NUM_FEATURES", "data", "logistic", "logistic_subsampled"]

NUM_DATA, NUM_FEATURES = 10_000, 50


def data() -> tuple[Tensor, Tensor]:
    """Features, and answers of a logistic model."""
    rng = generator()
    x = torch.randn(NUM_DATA, NUM_FEATURES, generator=rng)
    weights = torch.randn(NUM_FEATURES, generator=rng)
    return x, (torch.rand(NUM_DATA, generator=rng) < torch.sigmoid(x @ weights)).float()


def regression(name: str, subsample: int | None) -> Workload:
    """The workload, of so many data at a step."""

    def model(x: Tensor, y: Tensor) -> None:
        weights = pyro.sample("w", dist.Normal(torch.zeros(NUM_FEATURES), 1.0).to_event(1))
        bias = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", NUM_DATA, subsample_size=subsample) as indices:
            if subsample:
                x, y = x[indices], y[indices]
            pyro.sample("y", dist.Bernoulli(logits=x @ weights + bias), obs=y)

    def loss(parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        (latent,), entropy = sampled(parameters)
        if subsample:
            indices = torch.randperm(NUM_DATA)[:subsample]
            x, y = x[indices], y[indices]
        logits = torch.addmv(latent[NUM_FEATURES], x, latent[:NUM_FEATURES])
        error = functional.binary_cross_entropy_with_logits(logits, y, reduction="sum")
        scale = NUM_DATA / (subsample or NUM_DATA)
        return scale * error + 0.5 * (latent * latent).sum() - entropy

    def make_parameters() -> list[Tensor]:
        return locs_and_scales((NUM_FEATURES + 1,))

    by_hand = ByHand(make_parameters, loss)
    return Workload(name, model, lambda: auto_diagonal_normal(model), data(), by_hand)


def logistic() -> Workload:
    """10,000 data at each step."""
    return regression("logistic", None)


def logistic_subsampled(subsample: int = 256) -> Workload:
    """256 of 10,000 data at each step."""
    return regression("logistic_subsampled", subsample)

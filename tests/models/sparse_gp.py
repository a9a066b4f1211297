"""Sparse Gaussian process: inducing values are the latent, the data are subsampled (FITC)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from .program import Program, wave

NUM_DATA, SUBSAMPLE, INDUCING = 6, 3, 3
JITTER = 1e-4


def model(x, y):
    points = pyro.param("points", torch.tensor([-0.8, 0.1, 0.9]))
    lengthscale = pyro.param("lengthscale", torch.tensor(0.7), constraints.positive)
    noise = pyro.param("noise", torch.tensor(0.4), constraints.positive)

    def kernel(a, b):
        return (-0.5 * ((a.unsqueeze(-1) - b) / lengthscale) ** 2).exp()

    tril = torch.linalg.cholesky(kernel(points, points) + JITTER * torch.eye(INDUCING))
    values = pyro.sample("values", dist.MultivariateNormal(torch.zeros(INDUCING), scale_tril=tril))
    with pyro.plate("data", NUM_DATA, SUBSAMPLE) as index:
        cross = kernel(points, x[index])
        weights = torch.cholesky_solve(cross, tril)
        variance = 1 + JITTER - (cross * weights).sum(0) + noise**2
        pyro.sample("y", dist.Normal((values * weights.T).sum(-1), variance.sqrt()), obs=y[index])


def guide(x, y):
    loc = pyro.param("loc", wave(INDUCING, scale=0.7))
    tril = 0.5 * torch.eye(INDUCING) + wave(INDUCING, INDUCING, scale=0.2).tril(-1)
    tril = pyro.param("tril", tril, constraints.lower_cholesky)
    pyro.sample("values", dist.MultivariateNormal(loc, scale_tril=tril))


def build() -> Program:
    x = torch.linspace(-1, 1, NUM_DATA)
    return Program(model, guide, (x, (3 * x).sin() + wave(NUM_DATA, scale=0.2)))

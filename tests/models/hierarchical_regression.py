"""Hierarchical regression: a slope for each group, subsampled observations in nested plates."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from .program import Program, wave

GROUPS, OBSERVATIONS, SUBSAMPLE = 3, 4, 2


def model(x, y):
    noise = pyro.param("noise", torch.tensor(0.6), constraints.positive)
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.LogNormal(-0.5, 0.7))
    with pyro.plate("groups", GROUPS, dim=-1):
        slope = pyro.sample("slope", dist.Normal(mean, spread))
        with pyro.plate("observations", OBSERVATIONS, SUBSAMPLE, dim=-2) as index:
            pyro.sample("y", dist.Normal(slope * x[index], noise), obs=y[index])


def guide(x, y):
    loc = pyro.param("loc", torch.tensor([0.4, -0.2]))
    scale = pyro.param("scale", torch.tensor([0.5, 0.3]), constraints.positive)
    slope_loc = pyro.param("slope_loc", torch.tensor([0.6, 1.1, -0.2]))
    slope_scale = pyro.param("slope_scale", torch.tensor([0.3, 0.4, 0.2]), constraints.positive)
    mean = pyro.sample("mean", dist.Normal(loc[0], scale[0]))
    pyro.sample("spread", dist.LogNormal(loc[1], scale[1]))
    with pyro.plate("groups", GROUPS, dim=-1):
        pyro.sample("slope", dist.Normal(slope_loc + 0.5 * mean, slope_scale))


def build() -> Program:
    x = wave(OBSERVATIONS, GROUPS)
    y = torch.tensor([0.9, 1.4, 0.1]) * x + wave(OBSERVATIONS, GROUPS, scale=0.3).flip(0)
    return Program(model, guide, (x, y), plates=2)

"""Poisson counts with random effects, whose guide is reparameterised or not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from .program import Program, wave

UNITS = 4


def model(x, counts):
    prior_scale = pyro.param("prior_scale", torch.tensor(1.5), constraints.positive)
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), prior_scale).to_event(1))
    spread = pyro.sample("spread", dist.LogNormal(-0.5, 0.5))
    with pyro.plate("units", UNITS):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
        rate = (slopes[..., 0] + slopes[..., 1] * x + effect).exp()
        pyro.sample("count", dist.Poisson(rate), obs=counts)


def build(reparameterised: bool) -> Program:
    def guide(x, counts):
        slopes_loc = pyro.param("slopes_loc", torch.tensor([0.3, 0.2]))
        tril = torch.tensor([[0.3, 0.0], [0.1, 0.25]])
        tril = pyro.param("slopes_tril", tril, constraints.lower_cholesky)
        loc = pyro.param("loc", wave(UNITS, scale=0.4))
        scale = pyro.param("scale", torch.tensor(0.3), constraints.positive)
        spread_loc = pyro.param("spread_loc", torch.tensor(-0.3))
        pyro.sample("slopes", dist.MultivariateNormal(slopes_loc, scale_tril=tril))
        spread = pyro.sample("spread", dist.LogNormal(spread_loc, 0.3))
        effect = dist.Normal(loc, scale + 0.2 * spread).has_rsample_(reparameterised)
        with pyro.plate("units", UNITS):
            pyro.sample("effect", effect)

    x = wave(UNITS)
    return Program(model, guide, (x, torch.tensor([2.0, 1.0, 0.0, 3.0])))

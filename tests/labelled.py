"""Programs and readers that the suites of labelled draws share."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine


def conjugate(x):
    """One latent for each datum: the posterior is N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def posterior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def wrong(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2 + 0.3, 0.5))


def shared(x, scale=1.0):
    """One latent for all data."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)), poutine.scale(scale=scale):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shared_posterior(x, scale=1.0):
    pyro.sample("mu", dist.Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5))


def values(data, group, name):
    """A variable of the one chain."""
    array = data[group][name]
    return torch.as_tensor(array.values[0] if "chain" in array.dims else array.values)


def sizes(data, group):
    return {name: dict(array.sizes) for name, array in data[group].data_vars.items()}


def has_group(data, group):
    return group in (data.groups() if hasattr(data, "_groups") else data.children)


def log_normal(x, loc, scale):
    return dist.Normal(loc, scale).log_prob(x)

"""Gaussian mixture: global locations, an assignment for each datum."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from .program import How, Program, guide_infer, model_infer, reference_of, wave

COMPONENTS = 3


def build(how: How = "sampled", subsample_size: int | None = None) -> Program:
    """The assignments are sampled, enumerated by the guide, or marginalised by the model."""

    def model(data):
        weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraints.simplex)
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 0.0, 1.5]), 1.5).to_event(1))
        with pyro.plate("data", len(data), subsample_size) as index:
            c = pyro.sample("c", dist.Categorical(weights), infer=model_infer(how))
            pyro.sample("x", dist.Normal(Vindex(locs)[..., c], 0.8), obs=data[index])

    def guide(data):
        loc = pyro.param("loc", torch.tensor([-0.5, 0.4, 1.0]))
        scale = pyro.param("scale", torch.tensor([0.4, 0.3, 0.6]), constraints.positive)
        pyro.sample("locs", dist.Normal(loc, scale).to_event(1))
        if how == "model":
            return
        logits = pyro.param("logits", wave(len(data), COMPONENTS))
        with pyro.plate("data", len(data), subsample_size) as index:
            pyro.sample("c", dist.Categorical(logits=logits[index]), infer=guide_infer(how))

    return Program(model, guide, (wave(5, scale=1.5),), reference_of(how))


def with_guide_factor() -> Program:
    """Only the assignments are latent, and the guide adds a factor that depends on them."""

    def model(data):
        locs = pyro.param("locs", torch.tensor([-1.0, 0.2, 1.3]))
        with pyro.plate("data", len(data)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(locs[c], 0.8), obs=data)

    def guide(data):
        logits = pyro.param("logits", wave(len(data), COMPONENTS))
        with pyro.plate("data", len(data)):
            c = pyro.sample("c", dist.Categorical(logits=logits))
            pyro.factor("preference", torch.tensor([0.8, -0.4, 0.1])[c], has_rsample=False)

    return Program(model, guide, (wave(4, scale=1.5),), "brute force")

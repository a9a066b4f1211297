"""Hidden Markov model: states along `pyro.markov`, emissions with unknown locations."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from .program import How, Program, guide_infer, model_infer, reference_of, wave

LENGTH, SEQUENCES, STATES = 4, 2, 2


def model_of(how: How, latent_locs: bool):
    def model(data):
        initial = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
        transition = pyro.param("transition", initial, constraints.simplex)
        if latent_locs:
            locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        else:
            locs = pyro.param("locs", torch.tensor([-0.6, 0.9]))
        with pyro.plate("sequences", SEQUENCES):
            state = torch.tensor(0)
            for t in pyro.markov(range(LENGTH)):
                prior = dist.Categorical(transition[state])
                state = pyro.sample(f"state_{t}", prior, infer=model_infer(how))
                emission = dist.Normal(Vindex(locs)[..., state], 0.9)
                pyro.sample(f"x_{t}", emission, obs=data[t])

    return model


def build(how: How = "model") -> Program:
    """The states are marginalised by the model, or sampled or enumerated by the guide."""

    def guide(data):
        loc = pyro.param("loc", torch.tensor([-0.3, 0.7]))
        scale = pyro.param("scale", torch.tensor([0.4, 0.3]), constraints.positive)
        pyro.sample("locs", dist.Normal(loc, scale).to_event(1))
        if how == "model":
            return
        table = pyro.param("table", wave(LENGTH, STATES, STATES))
        slope = pyro.param("slope", torch.tensor([-0.4, 0.5]))
        with pyro.plate("sequences", SEQUENCES):
            state = torch.tensor(0)
            for t in pyro.markov(range(LENGTH)):
                logits = table[t][state] + slope * data[t].unsqueeze(-1)
                posterior = dist.Categorical(logits=logits)
                state = pyro.sample(f"state_{t}", posterior, infer=guide_infer(how))

    data = wave(LENGTH, SEQUENCES, scale=1.2)
    return Program(model_of(how, latent_locs=True), guide, (data,), reference_of(how))


def marginal() -> Program:
    """Nothing but the marginalised states is latent: each evaluation is exact."""

    def guide(data):
        pass

    data = wave(LENGTH, SEQUENCES, scale=1.2)
    model = model_of("model", latent_locs=False)
    return Program(model, guide, (data,), "TraceEnum_ELBO", exact=True)

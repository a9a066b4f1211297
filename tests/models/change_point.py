"""Change point: counts at one rate before a discrete time, at another one after it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from .program import How, Program, guide_infer, model_infer, reference_of, wave

LENGTH = 5


def counts(data, change, early, late):
    with pyro.plate("time", LENGTH):
        rate = torch.where(torch.arange(LENGTH) < change, early, late)
        pyro.sample("count", dist.Poisson(rate), obs=data)


def data_of_the_counts() -> tuple[torch.Tensor]:
    return (torch.tensor([1.0, 2.0, 4.0, 3.0, 5.0]),)


def build(how: How = "sampled", reparameterised: bool = True) -> Program:
    """The time is sampled, enumerated by the guide, or marginalised by the model."""

    def model(data):
        concentration = pyro.param("prior", torch.tensor(1.5), constraints.positive)
        rate = dist.Gamma(concentration, 0.8)
        early, late = pyro.sample("early", rate), pyro.sample("late", rate)
        change = dist.Categorical(logits=torch.zeros(LENGTH))
        change = pyro.sample("change", change, infer=model_infer(how))
        counts(data, change, early, late)

    def guide(data):
        concentration = torch.tensor([6.0, 9.0])
        concentration = pyro.param("concentration", concentration, constraints.positive)
        rate = pyro.param("rate", torch.tensor([4.0, 2.5]), constraints.positive)
        for site, name in enumerate(("early", "late")):
            posterior = dist.Gamma(concentration[site], rate[site])
            pyro.sample(name, posterior.has_rsample_(reparameterised))
        if how == "model":
            return
        change = dist.Categorical(logits=pyro.param("logits", wave(LENGTH)))
        pyro.sample("change", change, infer=guide_infer(how))

    return Program(model, guide, data_of_the_counts(), reference_of(how))


def discrete_model(data):
    rates = pyro.param("rates", torch.tensor([1.3, 3.6]), constraints.positive)
    prior = pyro.param("prior", wave(LENGTH, scale=0.3))
    change = pyro.sample("change", dist.Categorical(logits=prior))
    counts(data, change, rates[0], rates[1])


def discrete(how: How = "sampled") -> Program:
    """Only the time is latent."""

    def guide(data):
        change = dist.Categorical(logits=pyro.param("logits", wave(LENGTH)))
        pyro.sample("change", change, infer=guide_infer(how))

    data, exact = data_of_the_counts(), how != "sampled"
    return Program(discrete_model, guide, data, reference_of(how), exact=exact)


def with_auxiliary() -> Program:
    """The guide of the time is a mixture, whose indicator is a site of the guide alone."""

    def guide(data):
        side = dist.Bernoulli(logits=pyro.param("side_logit", torch.tensor(-1.4)))
        side = pyro.sample("side", side, infer={"is_auxiliary": True})
        logits = pyro.param("logits", wave(2, LENGTH))
        pyro.sample("change", dist.Categorical(logits=logits[side.long()]))

    return Program(discrete_model, guide, data_of_the_counts(), "brute force")

"""The importance-weighted bound: the mean weight of each datum, and where it is none."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import LOSSES, assert_close

MASK = torch.tensor([True, True, True, False, False])
loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def model():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def guide():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))


@loss_classes
def test_importance_bound_is_the_log_mean_weight_of_each_datum(cls):
    data = torch.tensor([0.3, -1.0, 2.0])
    draws = []

    def local_model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def local_guide():
        with pyro.plate("data", 3):
            draws.append(pyro.sample("z", dist.Normal(data / 2 + 0.1, 0.8)))

    elbo = cls(num_particles=50, beta=4.0)
    terms = elbo.decompose(local_model, local_guide)
    z = torch.stack(draws)
    log_weight = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(data)
    log_weight = log_weight - dist.Normal(data / 2 + 0.1, 0.8).log_prob(z)
    exact = (log_weight.logsumexp(0) - math.log(50)).sum()
    assert_close(terms.importance_bound, exact)
    assert terms.importance_bound > terms.elbo
    one = cls().decompose(local_model, local_guide)
    assert one.importance_bound.isnan()
    with pytest.raises(ValueError, match="log_evidence"):
        one.evidence_gap()
    scaled = [poutine.scale(program, 0.5) for program in (local_model, local_guide)]
    terms = cls(num_particles=5).decompose(*scaled)
    assert terms.importance_bound.isnan()
    with pytest.raises(ValueError, match="site 'x' has a scale of its own"):
        terms.evidence_gap()


@loss_classes
def test_importance_bound_under_subsampling(cls):
    """Right where all sites are in the subsampled plate; refused where one is outside of it."""
    data = torch.linspace(-1.0, 1.0, 6)

    def local(is_model, global_latent=False):
        def program():
            if global_latent:
                pyro.sample("m", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("data", 6, subsample_size=2) as i:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0 if is_model else 0.8))
                if is_model:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=data[i])

        return program

    many = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
    terms = cls(**many).decompose(local(True), local(False))
    parts = ("log_likelihood", "log_prior_sample", "log_guide_sample")
    total = sum(
        (-1 if part.startswith("log_guide") else 1) * site.per_particle(part, ("data",))
        for site in terms.sites.values()
        for part in parts
    )
    exact = 3 * ((total / 3).logsumexp(0) - math.log(4)).sum()
    assert_close(terms.importance_bound, exact)
    terms = cls(**many).decompose(local(True, True), local(False, True))
    with pytest.raises(ValueError, match="'data' is subsampled, and not all sites are inside"):
        terms.evidence_gap()
    terms = cls(num_particles=4).decompose(local(True), local(False))
    with pytest.raises(ValueError, match="different minibatches of 'data'"):
        terms.evidence_gap()


@loss_classes
def test_the_importance_bound_refuses_what_is_no_density_ratio(cls):
    data = torch.zeros(5)

    def observed(mask=None):
        def program():
            with pyro.plate("data", 5):
                with poutine.mask(mask=torch.tensor(True) if mask is None else mask):
                    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=data)

        return program

    def with_factor():
        guide()
        pyro.factor("f", torch.tensor(-50.0), has_rsample=True)

    elbo = cls(num_particles=3)
    terms = elbo.decompose(observed(MASK), poutine.mask(guide, MASK))
    with pytest.raises(ValueError, match="site 'z' is masked, and not all sites are"):
        terms.evidence_gap()
    padded = [poutine.mask(program, MASK) for program in (observed(MASK), guide)]
    assert elbo.decompose(*padded).no_bound is None
    unmasked = [poutine.mask(program, torch.tensor(True)) for program in (observed(), with_factor)]
    terms = elbo.decompose(*unmasked)
    with pytest.raises(ValueError, match="site 'f' has no prior in the model"):
        terms.evidence_gap()

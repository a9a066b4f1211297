"""Partly observed sites: obs_mask, and latents that stand for what was not observed."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import LOSSES, assert_mean
from torch.distributions import kl_divergence

from pyro_elbo import TraceKL_ELBO

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
OBSERVED = torch.tensor([True, True, False, True, False])
DATA = torch.tensor([0.3, -1.0, 0.0, 1.5, 0.0], dtype=torch.float64)


def model():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", 5):
        pyro.sample("x", dist.Normal(loc, 0.5), obs=DATA, obs_mask=OBSERVED)


def guide(mask=True):
    def program():
        pyro.sample("loc", dist.Normal(0.2, 0.3))
        with pyro.plate("data", 5), poutine.mask(mask=mask):
            pyro.sample("x_unobserved", dist.Normal(torch.ones(()), 0.7))

    return program


def elbo_by_definition():
    """The observed part's likelihood, and a KL where x is not observed."""
    variance = 0.3**2
    likelihood = dist.Normal(0.2, 0.5).log_prob(DATA) - variance / (2 * 0.25)
    kl = kl_divergence(dist.Normal(0.2, 0.3), dist.Normal(0.0, 1.0))
    missing = kl_divergence(dist.Normal(1.0, 0.7), dist.Normal(0.2, 0.5)) + variance / (2 * 0.25)
    return likelihood[OBSERVED].sum(), kl + (~OBSERVED).sum() * missing


@loss_classes
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("own_mask", [True, ~OBSERVED], ids=["without", "masked"])
def test_the_models_mask_holds_for_the_guide(cls, beta, own_mask):
    elbo = cls(beta=beta, num_particles=50, vectorize_particles=True)
    likelihood, kl = elbo_by_definition()
    objectives, kls = [], []
    for _ in range(40):
        objectives.append(-elbo.differentiable_loss(model, guide(own_mask)))
        kls.append(elbo.terms.kl)
    assert_mean(torch.stack(objectives), likelihood - beta * kl)
    assert_mean(torch.stack(kls), kl)
    site = elbo.terms.sites["x_unobserved"]
    assert site.role == "latent"
    assert not site.kl[OBSERVED].any()
    assert site.how["kl"] == ("exact" if cls is TraceKL_ELBO else "sampled")

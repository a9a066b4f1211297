"""Closed forms: entropies, densities of minus infinity, and what a sample of a KL may be."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from support import assert_close, assert_mean
from torch.distributions import transforms
from weighted import KL, auto_guide, every_loss, guide, loss_classes, make, model, moving_guide

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO


@loss_classes
def test_score_parts_entropy_term_read_as_minus_entropy(cls):
    """It is 0 for a Bernoulli; the entropy comes from log q."""

    def coin(probs):
        return lambda: pyro.sample("z", dist.Bernoulli(torch.tensor(probs)))

    elbo = cls()
    entropies = [elbo.decompose(coin(0.5), coin(0.3)).entropy for _ in range(100)]
    assert_mean(torch.stack(entropies), dist.Bernoulli(torch.tensor(0.3)).entropy())


def transformed():
    return dist.TransformedDistribution(dist.Normal(1.0, 0.5), transforms.ExpTransform())


def mixture():
    components = dist.Normal(torch.tensor([0.0, 1.0]), 0.5)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), components)


NO_ENTROPY = {
    "Transformed": transformed,
    "Masked": lambda: dist.Normal(torch.ones(1), 0.5).mask(True).to_event(1),
    "Mixture": mixture,
}


@pytest.mark.parametrize("name", NO_ENTROPY)
@loss_classes
def test_no_entropy(cls, name):
    """The sampled -log q stands in, and `terms` says so."""
    draws = []

    def without_entropy():
        draws.append(pyro.sample("z", NO_ENTROPY[name]()))

    priors = {
        "Transformed": dist.LogNormal(0.0, 1.0),
        "Masked": dist.Normal(torch.zeros(1), 1.0).to_event(1),
        "Mixture": dist.Normal(0.0, 1.0),
    }
    prior = priors[name]
    terms = cls().decompose(lambda: pyro.sample("z", prior), without_entropy)
    site, log_q = terms.sites["z"], NO_ENTROPY[name]().log_prob(draws[-1])
    closed = cls is TraceKL_ELBO and name == "Transformed"
    assert_close(terms.entropy, -log_q, 10.0)
    assert_close(terms.kl, KL if closed else log_q - prior.log_prob(draws[-1]), 10.0)
    assert site.how["log_guide"] == "sampled"
    assert site.how["kl"] == ("exact" if closed else "sampled")


@loss_classes
def test_a_mask_of_the_whole_distribution_leaves_its_entropy(cls):
    """It is the site's mask, so that the density has its closed forms."""
    terms = cls().decompose(model, lambda: pyro.sample("z", dist.Normal(1.0, 0.5).mask(True)))
    closed = {TraceEntropy_ELBO: "exact", TraceKL_ELBO: "exact", TraceGap_ELBO: "sampled"}
    assert terms.sites["z"].how["log_guide"] == closed[cls]


@loss_classes
def test_no_entropy_of_a_unit(cls):
    """The distribution of a factor of the guide."""

    def with_factor():
        z = guide()
        pyro.factor("f", 0.3 * z, has_rsample=True)

    terms = cls().decompose(model, with_factor)
    assert terms.sites["f"].role == "factor"
    assert terms.sites["f"].how["log_guide"] == "sampled"
    assert_close(terms.entropy, -terms.sites["z"].log_guide - terms.sites["f"].log_guide)


@every_loss
def test_model_parameters_where_beta_is_0_and_the_log_density_minus_infinity(cls):
    """No gradient of the prior, where 0 * (-inf) or `where(beta == 0, 0, ...)` gives nan."""
    program, parameters = moving_guide()
    width = pyro.param("width", torch.tensor(1e-9))

    def outside():
        fn = dist.Uniform(torch.zeros(()), pyro.param("width"), validate_args=False)
        z = pyro.sample("z", fn)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    loss = make(cls, beta=0.0).loss_and_grads(outside, program)
    assert math.isfinite(loss)
    assert width.grad is None or width.grad == 0
    assert all(p.grad.isfinite() and p.grad != 0 for p in parameters)


@loss_classes
def test_single_sample_kl(cls):
    """The true KL is 0.005; a sample, 0.1 z - 0.005, is negative 48 % of the time."""

    def shifted():
        pyro.sample("z", dist.Normal(torch.tensor(0.1), 1.0))

    elbo = cls()
    kls = torch.stack([elbo.decompose(model, shifted).kl for _ in range(300)])
    if cls is TraceKL_ELBO:
        assert_close(kls, torch.full((300,), 0.005), 1.0)
        return
    assert_mean(kls, torch.tensor(0.005))
    negative = dist.Normal(0.0, 1.0).cdf(torch.tensor(-0.05))
    if cls is TraceGap_ELBO:
        assert_mean((kls < 0).double(), negative)
    assert (kls < 0).any()


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])], ids=["all", "masked"])
def test_kl_of_to_event(vectorized, mask):
    """Per dimension where the distributions are independent over the event."""
    locs = torch.arange(8.0).reshape(4, 2)

    def program(loc, scale):
        def inner():
            with pyro.plate("rows", 6, subsample_size=3), poutine.mask(mask=mask is None or mask):
                pyro.sample("z", dist.Normal(loc, scale).expand((3, 4, 2)).to_event(2))

        return inner

    elbo = TraceKL_ELBO(beta=2.0, num_particles=2, vectorize_particles=vectorized)
    terms = elbo.decompose(program(torch.zeros(4, 2), 1.0), program(locs, 0.5))
    site = terms.sites["z"]
    exact = 2 * (math.log(2) + (0.25 + locs**2) / 2 - 0.5).expand(3, 4, 2)
    exact = exact if mask is None else exact * mask[:, None, None]
    assert_close(site.kl_per_dimension, exact, 100.0)
    assert_close(site.kl_per_dimension.sum((1, 2)), site.kl, 100.0)


@pytest.mark.parametrize("cls", [TraceGap_ELBO, TraceEntropy_ELBO], ids=lambda cls: cls.__name__)
def test_kl_of_to_event_where_it_is_sampled(cls):
    with pytest.raises(ValueError, match=r"site 'z' has no KL of each dim.*TraceKL_ELBO"):
        _ = cls().decompose(model, guide).sites["z"].kl_per_dimension


def precise():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 0.1))
    pyro.sample("x", dist.Normal(z, 0.1), obs=torch.tensor(0.0))


@loss_classes
def test_autodelta(cls):
    """A point mass: its "ELBO" is 2.77 where log p(x) is 1.04, so no bound is claimed."""
    auto = auto_guide(autoguide.AutoDelta, precise, 0.0)
    density = dist.Normal(0.0, 0.1).log_prob(torch.tensor(0.0))
    evidence = dist.Normal(0.0, 0.02**0.5).log_prob(torch.tensor(0.0))
    assert (round(2 * density.item(), 2), round(evidence.item(), 2)) == (2.77, 1.04)
    terms = cls(num_particles=2).decompose(precise, auto)
    assert terms.sites["z"].role == "map"
    assert terms.entropy == 0
    assert_close(terms.kl, -density)
    assert_close(terms.elbo, 2 * density)
    assert terms.importance_bound.isnan()
    with pytest.raises(ValueError, match="log_evidence"):
        terms.evidence_gap()


def test_analytic_entropy():
    """At the posterior it raises the variance, from 0; what was taken is said, and documented."""

    def observed():
        z = model()
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def posterior():
        pyro.sample("z", dist.Normal(torch.tensor(1.0), 0.5**0.5))

    evidence = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(2.0))
    spread = {}
    for cls, how in [(TraceGap_ELBO, "sampled"), (TraceEntropy_ELBO, "exact")]:
        elbo = cls(num_particles=100, vectorize_particles=True)
        terms = elbo.decompose(observed, posterior)
        spread[how] = terms.standard_error["elbo"]
        assert terms.sites["z"].how["log_guide"] == how
        assert elbo.plan(observed, posterior)["z"].entropy == how
    assert_close(TraceGap_ELBO().decompose(observed, posterior).elbo, evidence, 10.0)
    assert_close(spread["sampled"], 0.0, 10.0)
    assert spread["exact"] > 1e6 * spread["sampled"]
    assert "raise the variance" in TraceEntropy_ELBO.__doc__

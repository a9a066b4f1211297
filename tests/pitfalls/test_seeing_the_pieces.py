"""Seeing the pieces: one test for each way in which the terms of a bound are misread."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, autoguide
from support import assert_close, assert_mean
from torch.distributions import kl_divergence
from weighted import KL, guide, loss_classes, model

from pyro_elbo import TraceKL_ELBO


@loss_classes
def test_log_prob_sum_drops_plate_scale_and_mask(cls):
    """11 of 110 data, 6 of them masked: -90.9; `fn.log_prob(value).sum()` is -15.1."""
    data = torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    mask = torch.arange(11) < 5
    exact = 10 * dist.Normal(0.0, 1.0).log_prob(data)[mask].sum()
    naive = dist.Normal(0.0, 1.0).log_prob(data).sum()
    assert (round(exact.item(), 1), round(naive.item(), 1)) == (-90.9, -15.1)

    def in_plate(program):
        def inner():
            with pyro.plate("data", 110, subsample_size=11), poutine.mask(mask=mask):
                program()

        return inner

    def observed():
        model()
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=data)

    elbo = cls(num_particles=2)
    terms = elbo.decompose(in_plate(observed), in_plate(guide))
    assert_close(terms.reconstruction, exact)
    assert not terms.sites["z"].kl[~mask].any()
    kls = [elbo.decompose(in_plate(observed), in_plate(guide)).kl for _ in range(100)]
    assert_mean(torch.stack(kls), torch.tensor(50 * KL))


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@loss_classes
def test_guide_enumerated_site(cls, kind):
    """True loss 1.25, weighted by q; the plain sum over the values is 2.31."""
    p, q = torch.tensor([0.64, 0.36]), torch.tensor([0.66, 0.34])

    def coin_model():
        c = pyro.sample("c", dist.Categorical(p))
        pyro.sample("x", dist.Normal(1.0 * c, 1.0), obs=torch.tensor(1.0))

    def coin_guide():
        pyro.sample("c", dist.Categorical(q), infer={"enumerate": kind})

    nll = -dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(1.0))
    costs = (q / p).log() + nll
    assert (round((q * costs).sum().item(), 2), round(costs.sum().item(), 2)) == (1.25, 2.31)
    elbo = cls(num_particles=2)
    terms = elbo.decompose(coin_model, coin_guide)
    assert_close(-terms.elbo, (q * costs).sum(), 4.0)
    assert_close(terms.reconstruction, -(q * nll).sum(), 4.0)
    assert_close(terms.kl, (q * (q / p).log()).sum(), 4.0)
    assert_close(terms.entropy, -(q * q.log()).sum(), 4.0)
    site = terms.sites["c"]
    assert set(site.how.values()) == {"enumerated"}
    assert site.gradient == "enumerated"
    assert terms.importance_bound.isnan()
    assert "enumerated" in terms.no_bound


@pytest.mark.parametrize("validation", [True, False])
@loss_classes
def test_model_enumerated_site(cls, validation):
    """Summed out under every loss; Pyro's that do not enumerate warn, or raise KeyError: 'c'."""
    pyro.enable_validation(validation)
    draws = []

    def coin_model():
        z = model()
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=torch.tensor(1.0))

    terms = cls().decompose(coin_model, lambda: draws.append(guide()))
    components = dist.Normal(draws[-1] + torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.ones(()))
    evidence = (components + torch.tensor([0.7, 0.3]).log()).logsumexp(0)
    assert_close(terms.reconstruction, evidence)
    assert terms.sites["x"].how["log_likelihood"] == "enumerated"
    with pytest.raises(ValueError, match=r"latent 'c' is not sampled by the guide.*enumerate"):
        cls().loss(poutine.infer_config(coin_model, lambda _: {"enumerate": None}), guide)


@loss_classes
def test_what_counts_as_observed(cls):
    """Likelihoods and factors of the model; not deterministic sites, nor subsampling."""
    data, mask = torch.tensor([0.5, -1.0]), torch.tensor([True, False])

    def everything():
        z = model()
        pyro.deterministic("twice", 2 * z)
        pyro.factor("up", 0.7 * z)
        with pyro.plate("data", 6, subsample_size=2):
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=data, obs_mask=mask)

    def all_latents():
        guide()
        with pyro.plate("data", 6, subsample_size=2):
            pyro.sample("x_unobserved", dist.Normal(torch.ones(()), 0.5))

    terms = cls(beta=4.0).decompose(everything, all_latents)
    roles = {name: site.role for name, site in terms.sites.items()}
    latents = {"z": "latent", "x_unobserved": "latent"}
    assert roles == {"up": "factor", "x_observed": "observed", **latents}
    likelihood = 3 * dist.Normal(0.0, 1.0).log_prob(data[0])
    assert_close(terms.reconstruction, likelihood + terms.factors)
    assert_close(terms.factors, terms.sites["up"].log_likelihood)
    assert terms.factors != 0
    assert {name: site.beta for name, site in terms.sites.items()} == {
        name: 4.0 if role == "latent" else None for name, role in roles.items()
    }


def two_latents():
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", 3):
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=torch.ones(3))


@pytest.mark.parametrize(
    "name",
    [
        "AutoDiagonalNormal",
        "AutoMultivariateNormal",
        "AutoLowRankMultivariateNormal",
        "AutoIAFNormal",
    ],
)
@loss_classes
def test_autocontinuous_guides(cls, name):
    """All density in one auxiliary site: one joint group, in which no datum has its own terms."""
    auto = getattr(autoguide, name)(two_latents)
    auto()
    elbo = cls(beta=4.0)
    terms = elbo.decompose(two_latents, auto)
    joint = f"_{name}_latent"
    assert list(terms.sites) == ["x", joint]
    assert terms.sites[joint].role == "joint"
    assert terms.sites[joint].members == (joint, "a", "b")
    assert_close(terms.weighted_kl, 4 * terms.sites[joint].kl)
    with pytest.raises(ValueError, match=f"joint site '{joint}'"):
        terms.per_datum("data")


@pytest.mark.parametrize("num_particles", [1, 3])
@loss_classes
def test_all_pieces_come_from_one_run(cls, num_particles):
    """Two runs would draw two different subsamples."""
    data, drawn, runs = torch.arange(100.0), [], []

    def minibatch():
        with pyro.plate("data", 100, subsample_size=3) as indices:
            drawn.append(indices)
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[indices])

    def minibatch_guide():
        with pyro.plate("data", 100, subsample_size=3) as indices:
            z = pyro.sample("z", dist.Normal(data[indices] / 2, 0.5))
            runs.append((indices, z))

    terms = cls(num_particles=num_particles).decompose(minibatch, minibatch_guide)
    assert len(drawn) == len(runs) == num_particles
    likelihoods = []
    for indices, (guides_indices, z) in zip(drawn, runs, strict=True):
        assert torch.equal(indices, guides_indices)
        likelihoods.append(100 / 3 * dist.Normal(z, 1.0).log_prob(data[indices]).sum())
    assert_close(terms.reconstruction, torch.stack(likelihoods).mean())
    if num_particles == 1:
        assert torch.equal(terms.indices["data"], drawn[0])
        kl = kl_divergence(dist.Normal(data[drawn[0]] / 2, 0.5), dist.Normal(0.0, 1.0))
        if cls is TraceKL_ELBO:
            assert_close(terms.kl, 100 / 3 * kl.sum())


def two_guides():
    loc = pyro.param("loc", torch.tensor(1.0))
    pyro.sample("a", dist.Normal(loc, 0.5))
    with pyro.plate("data", 3):
        pyro.sample("b", dist.Normal(loc, 0.5))


@loss_classes
def test_svi_step(cls):
    """It returns a float, and the pieces are on `elbo.terms`."""
    elbo = cls(beta=4.0)
    svi = SVI(two_latents, two_guides, pyro.optim.Adam({"lr": 0.01}), elbo)
    for evaluate in (svi.step, svi.evaluate_loss):
        loss = evaluate()
        assert type(loss) is float
        assert elbo.terms.objective == -loss

"""Seeing the pieces of minibatches and particles: what is shared, and what counts how often."""

from __future__ import annotations

import inspect
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from support import assert_close, assert_mean
from weighted import KL, loss_classes, model

from pyro_elbo import ELBOTerms, TraceGap_ELBO, TraceKL_ELBO

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


def wide_minibatch():
    """Half the data are 0, half sqrt(17.6), and a minibatch has one of ten: sd 44."""
    model()
    data = torch.tensor([0.0, 17.6**0.5]).repeat(5)
    with pyro.plate("data", 10, subsample_size=1) as indices:
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=data[indices])


def shifted_guide():
    """The log-ratio to N(0, 1) has sd 0.62."""
    pyro.sample("z", dist.Normal(torch.tensor(0.62), 1.0))


def test_vectorised_particles_under_subsampling():
    """They share one minibatch: spread 0.62 where the true one is 44. `standard_error` says so."""
    elbo = TraceGap_ELBO(num_particles=50, vectorize_particles=True)
    exact = -10 * (HALF_LOG_TAU + 17.6 / 4) - 0.5 * 0.62**2
    given_minibatch, deviations = [], []
    for _ in range(100):
        terms = elbo.decompose(wide_minibatch, shifted_guide)
        given_minibatch.append(50 * terms.standard_error["elbo"] ** 2)
        deviations.append((terms.elbo - exact) ** 2)
    assert_mean(torch.stack(given_minibatch), torch.tensor(0.62**2))
    assert_mean(torch.stack(deviations), torch.tensor(44**2 + 0.62**2 / 50))
    assert "Given the minibatch" in inspect.getdoc(ELBOTerms.standard_error)
    one_each = TraceGap_ELBO(num_particles=5)
    spreads = [
        5 * one_each.decompose(wide_minibatch, shifted_guide).standard_error["elbo"] ** 2
        for _ in range(100)
    ]
    assert_mean(torch.stack(spreads), torch.tensor(44**2 + 0.62**2))


@loss_classes
def test_vectorised_particles(cls):
    """Their plate is no plate of the program, and they mean what sequential ones mean."""

    def local(loc, scale):
        def program():
            with pyro.plate("rows", 2, dim=-2), pyro.plate("data", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(loc, scale))
                if scale == 1.0:
                    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.arange(6.0).reshape(2, 3))

        return program

    programs = local(torch.zeros(()), 1.0), local(torch.tensor([0.0, 1.0, 2.0]), 0.5)
    means = {}
    for vectorized in (False, True):
        elbo = cls(num_particles=4, vectorize_particles=vectorized)
        terms = [elbo.decompose(*programs) for _ in range(50)]
        assert terms[0].sites["z"].plates == ("rows", "data")
        assert terms[0].sites["z"].kl.shape == (2, 3)
        assert terms[0].per_datum("data").elbo.shape == (3,)
        means[vectorized] = torch.stack([record.per_datum("data").elbo for record in terms])
    assert_mean(means[True] - means[False], torch.zeros(3))
    kls = torch.stack([record.per_datum("data").kl for record in terms])
    exact = math.log(2) + 0.5 * (0.25 + torch.tensor([0.0, 1.0, 4.0])) - 0.5
    assert_mean(kls, 2 * exact)


EPOCH = 1 + 1.025 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)


def shared_model(batch, size):
    w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", size, subsample=torch.arange(len(batch))):
        pyro.sample("h", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=batch)


def shared_guide(batch, size):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.1))
    with pyro.plate("data", size, subsample=torch.arange(len(batch))):
        pyro.sample("h", dist.Normal(torch.zeros(()), 1.0))


def epoch_losses(elbo, size):
    """The losses of ten minibatches of ten, without training, added up in each of 20 epochs."""
    losses = [
        sum(elbo.loss(shared_model, shared_guide, batch, size) for batch in EPOCH.split(10))
        for _ in range(20)
    ]
    return torch.tensor(losses)


@loss_classes
def test_latents_outside_the_data_plate(cls):
    """True 147 per epoch; 168 where the likelihood is unscaled, which counts their KL ten times."""
    global_kl = math.log(10) + 0.5 * (0.01 + 1) - 0.5
    nll = 100 * (HALF_LOG_TAU + 0.5 * (0.01 + 1.025**2))
    assert (round(global_kl + nll), round(10 * global_kl + nll)) == (147, 168)
    assert_mean(epoch_losses(cls(), size=100) / 10, torch.tensor(global_kl + nll))
    assert_mean(epoch_losses(cls(), size=10), torch.tensor(10 * global_kl + nll))


@loss_classes
def test_latents_outside_the_data_plate_are_shown_apart(cls):
    def local_guide(batch, size):
        pyro.sample("w", dist.Normal(torch.tensor(1.0), 0.1))
        with pyro.plate("data", size, subsample=torch.arange(len(batch))):
            pyro.sample("h", dist.Normal(torch.ones(()), 0.5))

    terms = cls().decompose(shared_model, local_guide, EPOCH[:10], 100)
    local = terms.per_datum("data")
    assert terms.sites["w"].plates == ()
    assert terms.sites["h"].plates == ("data",)
    assert local.scale == 10
    assert_close(terms.kl, terms.sites["w"].kl + 10 * local.kl.sum(), 100.0)
    if cls is TraceKL_ELBO:
        assert_close(local.kl, torch.full((10,), KL))
        assert_close(terms.sites["w"].kl, math.log(10) + 0.5 * (0.01 + 1) - 0.5)


@pytest.mark.parametrize("size", [10, 100], ids=["unscaled", "scaled"])
@loss_classes
def test_a_global_latent_beside_an_unscaled_minibatch_warns_once(cls, size):
    svi = SVI(shared_model, shared_guide, pyro.optim.Adam({"lr": 0.01}), cls())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in torch.linspace(-1.0, 3.0, 100).split(10):
            svi.step(batch, size)
    assert ["site 'w'" in str(w.message) for w in caught] == [True] * (size == 10)

"""Law 8: each term by the definition, with its own side's mask and scale."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import LOSSES, assert_close, assert_mean

from pyro_elbo import (
    TraceKL_ELBO,
)

KL = math.log(2) + (0.25 + 1) / 2 - 0.5
E_LOG_Q = -0.5 * math.log(2 * math.pi * math.e) - math.log(0.5)
loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def model():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def guide():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))


def mean_loss(cls, model, guide, exact, **kwargs):
    elbo = cls(num_particles=20, vectorize_particles=True, **kwargs)
    losses = torch.tensor([elbo.loss(model, guide) for _ in range(100)])
    assert_mean(losses, torch.tensor(exact))
    return elbo


@loss_classes
def test_factors_on_both_sides_and_auxiliary_sites(cls):
    def with_factor():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("up", 0.7 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))

    def with_auxiliary():
        u = pyro.sample("u", dist.Normal(torch.zeros(()), 0.5), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(1.0 + 0.0 * u, 0.5))
        pyro.factor("down", 0.2 * u + 0.1, has_rsample=True)

    likelihood = -0.5 * math.log(2 * math.pi) - 0.5 * (4 + 0.25)
    exact = likelihood + 0.7 - KL - E_LOG_Q - 0.1
    elbo = mean_loss(cls, with_factor, with_auxiliary, -exact)
    terms = elbo.terms
    assert terms.sites["up"].role == terms.sites["down"].role == "factor"
    assert_close(terms.factors, terms.sites["up"].log_likelihood)
    together = terms.sites["x"].log_likelihood + terms.factors
    assert_close(terms.reconstruction, together)


@loss_classes
def test_events_outside_of_plates_and_nested_plates(cls):
    def nested(side):
        with pyro.plate("rows", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(side(0.0, 1.0), side(1.0, 0.5)))
            with pyro.plate("columns", 2, dim=-1):
                value = dist.Normal(0 * a[..., None] + side(0.0, 1.0), side(1.0, 0.5))
                pyro.sample("b", value.expand((*a.shape[:-1], 2, 4)).to_event(1))

    terms = cls(num_particles=3).decompose(
        lambda: nested(lambda p, q: torch.tensor(p)), lambda: nested(lambda p, q: torch.tensor(q))
    )
    assert terms.sites["a"].plates == ("rows",)
    assert terms.sites["a"].kl.shape == (3,)
    assert terms.sites["b"].plates == ("rows", "columns")
    assert terms.sites["b"].kl.shape == (3, 2)
    if cls is TraceKL_ELBO:
        assert_close(terms.kl, torch.tensor(3 * KL + 24 * KL))
        assert_close(terms.per_datum("columns").kl, torch.full((2,), 12 * KL))


@loss_classes
def test_programs_without_latents_or_observations(cls):
    data = torch.tensor([0.0, 1.0])

    def no_latents():
        with pyro.plate("data", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=data)

    terms = cls().decompose(no_latents, lambda: None)
    assert terms.kl == terms.entropy == 0
    assert_close(terms.elbo, dist.Normal(0.0, 1.0).log_prob(data).sum())
    terms = cls().decompose(model, guide)
    assert terms.reconstruction == 0
    assert cls().loss(lambda: None, lambda: None) == 0
    assert cls(beta=3.0).decompose(no_latents, lambda: None).beta == 3.0


@loss_classes
def test_the_kl_of_folded_distributions_is_not_that_of_their_bases(cls):
    def folded(loc):
        return lambda: pyro.sample("z", dist.FoldedDistribution(dist.Normal(loc, 1.0)))

    values = torch.tensor([cls().loss(folded(-1.0), folded(1.0)) for _ in range(50)])
    assert_mean(values, torch.tensor(0.0))

    def half(scale):
        return lambda: pyro.sample("z", dist.HalfNormal(torch.tensor(scale)))

    terms = cls().decompose(half(1.0), half(0.5))
    assert terms.sites["z"].how["kl"] == ("exact" if cls is TraceKL_ELBO else "sampled")


@loss_classes
def test_a_closed_kl_never_broadcasts_the_guide(cls):
    def wide():
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def narrow():
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))

    with pyro.validation_enabled(False):
        terms = cls().decompose(wide, narrow)
    assert terms.sites["z"].how["kl"] == "sampled"


def test_float32_stays_float32():
    torch.set_default_dtype(torch.float32)
    terms = TraceKL_ELBO(num_particles=2).decompose(model, guide)
    assert terms.elbo.dtype == terms.importance_bound.dtype == torch.float32

"""A program's draws as ArviZ takes them: what each group holds."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from labelled import (
    conjugate,
    log_normal,
    posterior,
    shared,
    shared_posterior,
    sizes,
    values,
    wrong,
)
from support import assert_close, assert_mean

from pyro_elbo import TraceGap_ELBO, reference, to_inference_data
from pyro_elbo.interop import psis_khat, why_no_khat

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
LARGE = 20_000
SAMPLED = {"chain": 1, "draw": 60}


def test_the_log_weight_of_a_posterior_is_the_evidence():
    data = to_inference_data(conjugate, posterior, X, num_samples=100)
    evidence = log_normal(X, 0.0, 2**0.5).sum()
    weights = values(data, "sample_stats", "log_weight")
    assert weights.shape == (100,)
    assert_close(weights, evidence.expand(100), scale=20.0)
    assert np.isnan(psis_khat(weights)) and "posterior" in str(why_no_khat(weights))


def test_the_draws_have_the_moments_of_their_distributions():
    data = to_inference_data(conjugate, wrong, X, num_samples=LARGE)
    moments = {
        ("posterior", "z"): (X / 2 + 0.3, 0.25),
        ("posterior_predictive", "x"): (X / 2 + 0.3, 1.25),
        ("prior", "z"): (torch.zeros(3), 1.0),
        ("prior_predictive", "x"): (torch.zeros(3), 2.0),
    }
    for key, (mean, variance) in moments.items():
        draws = values(data, *key)
        assert_mean(draws, mean, str(key))
        assert_mean((draws - mean) ** 2, torch.full((3,), variance), str(key))
    pairs = {"posterior": 0.25, "prior": 1.0}
    for group, covariance in pairs.items():
        z, x = values(data, group, "z"), values(data, f"{group}_predictive", "x")
        products = (z - moments[group, "z"][0]) * (x - moments[group, "z"][0])
        assert_mean(products, torch.full((3,), covariance), group)


def test_log_likelihoods_and_terms_are_those_of_the_draws():
    data = to_inference_data(conjugate, wrong, X, num_samples=60)
    z = values(data, "posterior", "z")
    likelihood, prior = log_normal(X, z, 1.0), log_normal(z, 0.0, 1.0)
    guide = log_normal(z, X / 2 + 0.3, 0.5)
    exact = {
        "reconstruction": likelihood,
        "log_prior": prior,
        "log_guide": guide,
        "kl": guide - prior,
        "elbo": likelihood + prior - guide,
        "log_weight": likelihood + prior - guide,
    }
    assert_close(values(data, "log_likelihood", "x"), likelihood, scale=10.0)
    for name, terms in exact.items():
        assert_close(values(data, "sample_stats", name), terms.sum(-1), scale=20.0)
    assert_close(values(data, "observed_data", "x"), X)


def test_scales_are_in_the_terms_only():
    data = to_inference_data(shared, shared_posterior, X, scale=4.0, num_samples=60)
    mu = values(data, "posterior", "mu")
    likelihood = log_normal(X, mu[:, None], 1.0)
    ratio = log_normal(mu, 0.0, 1.0) - log_normal(mu, X.sum() / 4, 0.5)
    assert_close(values(data, "log_likelihood", "x"), likelihood, scale=10.0)
    assert_close(values(data, "sample_stats", "log_weight"), likelihood.sum(-1) + ratio, scale=20.0)
    assert_close(values(data, "sample_stats", "elbo"), 4 * likelihood.sum(-1) + ratio, scale=80.0)


def test_the_elbo_is_that_of_the_loss():
    pyro.set_rng_seed(0)
    data = to_inference_data(shared, shared_posterior, X, num_samples=60)
    pyro.set_rng_seed(0)
    loss = TraceGap_ELBO(num_particles=60, vectorize_particles=True)
    terms = loss.decompose(shared, shared_posterior, X)
    assert_close(values(data, "sample_stats", "elbo").mean(), terms.elbo, scale=20.0)


@pytest.mark.parametrize("kind", reference.ALL, ids=lambda kind: kind.__name__)
def test_the_mean_of_the_draws_is_the_exact_elbo(kind):
    problem = kind()
    data = to_inference_data(problem.model, problem.guide, *problem.args, num_samples=4000)
    stats = {name: values(data, "sample_stats", name) for name in data["sample_stats"].data_vars}
    exact = problem.exact_terms()
    assert_mean(stats["elbo"], exact.elbo.detach())
    assert_mean(stats["reconstruction"], exact.reconstruction.detach())
    assert_close(stats["log_weight"], stats["elbo"], scale=1e3)


TABLE = torch.arange(40.0, dtype=torch.float64).reshape(4, 10)


def nested():
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    rows, columns = pyro.plate("rows", 4, 3, dim=-2), pyro.plate("columns", 10, 5, dim=-1)
    with rows as i:
        level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
        with columns as j:
            loc = level + weights[..., 0]
            z = pyro.sample("z", dist.Normal(torch.stack([loc, loc], -1), 1.0).to_event(1))
            pyro.deterministic("sum", z.sum(-1))
            pyro.deterministic("twice", 2 * z, event_dim=1)
            pyro.deterministic("positive", z > 0)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=TABLE[i][:, j])


def nested_guide():
    pyro.sample("weights", dist.Normal(torch.ones(2), 0.5).to_event(1))
    with pyro.plate("rows", 4, 3, dim=-2):
        level = pyro.sample("level", dist.Normal(torch.ones(()), 0.5))
        with pyro.plate("columns", 10, 5, dim=-1):
            z = dist.Normal(level[..., None].expand(*level.shape[:-1], 5, 2), 0.5)
            pyro.sample("z", z.to_event(1))


NESTED = {"rows": 3, "columns": 5}


@pytest.mark.parametrize("at_once", [True, False])
def test_plates_are_dims_and_all_draws_share_one_minibatch(at_once):
    data = to_inference_data(nested, nested_guide, num_samples=60, vectorize_particles=at_once)
    of_data = {"x": {**SAMPLED, **NESTED}}
    latents = {
        "weights": {**SAMPLED, "weights_dim_0": 2},
        "level": {**SAMPLED, "rows": 3},
        "z": {**SAMPLED, **NESTED, "z_dim_0": 2},
        "sum": {**SAMPLED, **NESTED},
        "twice": {**SAMPLED, **NESTED, "twice_dim_0": 2},
        "positive": {**SAMPLED, **NESTED, "positive_dim_0": 2},
    }
    for group in ("posterior", "prior"):
        assert sizes(data, group) == latents
        z = values(data, group, "z")
        assert_close(values(data, group, "sum"), z.sum(-1))
        assert_close(values(data, group, "twice"), 2 * z)
        assert torch.equal(values(data, group, "positive"), z > 0)
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive"):
        assert sizes(data, group) == of_data
    observed = data["observed_data"]
    assert len({*observed["rows"].values}) == 3 and len({*observed["columns"].values}) == 5
    at = TABLE[observed["rows"].values.tolist()][:, observed["columns"].values.tolist()]
    assert_close(values(data, "observed_data", "x"), at)
    likelihood = log_normal(at, values(data, "posterior", "sum"), 1.0)
    assert_close(values(data, "log_likelihood", "x"), likelihood, scale=1e4)
    stats = data["sample_stats"]
    assert (stats["elbo"].values < stats["log_weight"].values).all()

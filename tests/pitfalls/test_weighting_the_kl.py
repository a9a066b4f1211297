"""Weighting the KL: one test for each way in which a weight goes wrong with Pyro's losses."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO, autoguide
from pyro.infer.reparam import SplitReparam
from support import assert_close, assert_mean
from weighted import (
    ALL_LOSSES,
    AUTOGUIDES,
    E_LOG_P,
    E_LOG_Q,
    KL,
    PARTICLES,
    PYRO_LOSSES,
    assert_mean_is_one_of,
    auto_guide,
    every_loss,
    guide,
    loss_classes,
    losses,
    losses_and_grads,
    make,
    model,
    moving_guide,
    vector,
)

SCORING_LOSSES = [cls for cls in ALL_LOSSES if not issubclass(cls, TraceMeanField_ELBO)]
scoring_losses = pytest.mark.parametrize("cls", SCORING_LOSSES, ids=lambda cls: cls.__name__)


ESTIMATORS = [(cls, "pathwise") for cls in ALL_LOSSES]
ESTIMATORS += [(cls, "score function") for cls in SCORING_LOSSES]


@pytest.mark.parametrize(("cls", "estimator"), ESTIMATORS)
def test_beta_on_one_side_only(cls, estimator):
    """True 3.27: prior N(0, 1), guide N(1, 0.5), beta = 4; gradients 4 and -6."""
    program, parameters = moving_guide(estimator == "pathwise")
    values, gradients = losses_and_grads(
        make(cls, beta=4.0, **PARTICLES), model, program, parameters
    )
    assert round(4 * KL, 2) == 3.27
    assert_mean(values, torch.tensor(4 * KL))
    assert_mean(gradients[0], torch.tensor(4.0))
    assert_mean(gradients[1], torch.tensor(4 * (0.5 - 1 / 0.5)))


@pytest.mark.parametrize("parent", PYRO_LOSSES[:2])
def test_beta_on_one_side_only_in_pyro(parent):
    """By a scale on the model 5.45 (Trace_ELBO), 0.82 (TraceMeanField_ELBO); on the guide -1.36."""
    today = {"model": E_LOG_Q - 4 * E_LOG_P, "guide": 4 * E_LOG_Q - E_LOG_P}
    if parent is TraceMeanField_ELBO:
        today = {"model": KL, "guide": 4 * KL}
    elbo = parent()
    for side, value in today.items():
        programs = {"model": model, "guide": guide}
        programs[side] = poutine.scale(programs[side], 4.0)
        values = losses(elbo, programs["model"], programs["guide"])
        assert_mean_is_one_of(values, value, 4 * KL)


@pytest.mark.parametrize("side", ["model", "guide"])
@every_loss
def test_a_users_scale_that_differs_between_the_sides_warns_once(cls, side):
    programs = {"model": model, "guide": guide}
    programs[side] = poutine.scale(programs[side], 4.0)
    elbo = make(cls)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            elbo.loss(programs["model"], programs["guide"])
    about_scales = [str(w.message) for w in caught if "scale" in str(w.message)]
    assert len(about_scales) == 1
    assert "'z'" in about_scales[0]


@every_loss
def test_beta_0(cls):
    """Allowed, and 0 times minus infinity is dropped."""

    def outside():
        pyro.sample("z", dist.Uniform(torch.zeros(()), 1e-9, validate_args=False))

    program, parameters = moving_guide()
    elbo = make(cls, beta=0.0)
    assert elbo.loss(outside, program) == 0.0
    elbo.loss_and_grads(outside, program)
    assert all(p.grad is None or not p.grad.any() for p in parameters)


@pytest.mark.parametrize("name", AUTOGUIDES)
@every_loss
def test_beta_inside_the_model_with_an_autoguide(cls, name):
    """True 3.27 for each of two entries; a point mass has -4 log p(1) = 5.68 instead."""
    exact = 4 * KL
    if name == "AutoDelta":
        exact = -4 * float(dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0)))
    values = losses(make(cls, beta=4.0, **PARTICLES), vector, AUTOGUIDES[name](vector))
    assert_mean(values, torch.tensor(2 * exact))


def coin_gradient(beta, q=0.3, p=0.5, likelihood_ratio=0.5):
    """Of the loss in the logit of q: x ~ N(z, 1) is 1, so that log p(x|1) - log p(x|0) = 0.5."""
    log_odds = math.log(q / (1 - q)) - math.log(p / (1 - p))
    return q * (1 - q) * (beta * log_odds - likelihood_ratio)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
@scoring_losses
def test_score_function_guide(cls, beta):
    """At beta = 4 the gradient is -0.8167, and Pyro's own with both sides scaled is right too."""
    logit = pyro.param("logit", torch.tensor(math.log(0.3 / 0.7)))

    def coin_model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def coin_guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit")))

    assert round(coin_gradient(4.0), 4) == -0.8167
    elbo = make(cls, beta=beta, **PARTICLES)
    _, gradients = losses_and_grads(elbo, coin_model, coin_guide, [logit])
    assert_mean(gradients[0], torch.tensor(coin_gradient(beta)))


def labelled():
    z = model()
    with poutine.scale(scale=4.0):
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    pyro.sample("x", dist.Normal(z, 1.0))
    pyro.deterministic("twice", 2 * z)


@every_loss
def test_scale_4_on_an_observed_site(cls):
    """The user's 4 stays on the label, and beta stays off it."""
    observed = poutine.condition(labelled, data={"x": torch.tensor(2.0)})
    nll_y = 0.5 * math.log(2 * math.pi) + 0.5 * 0.25
    exact = 3 * KL + 4 * nll_y - E_LOG_P
    assert_mean(losses(make(cls, beta=3.0, **PARTICLES), observed, guide), torch.tensor(exact))


@loss_classes
def test_latent_only_messenger_inside_condition(cls):
    observed = poutine.condition(labelled, data={"x": torch.tensor(2.0)})
    terms = {}
    for beta in (1.0, 3.0):
        pyro.set_rng_seed(2)
        terms[beta] = cls(beta=beta).decompose(observed, guide)
    assert torch.equal(terms[3.0].reconstruction, terms[1.0].reconstruction)
    assert terms[3.0].sites["x"].beta is None
    assert_close(terms[3.0].weighted_kl, 3 * terms[1.0].kl)


@every_loss
def test_a_factor_in_the_guide(cls):
    """It counts in log q: loss 4 (KL - 0.3)."""

    def with_factor():
        z = guide()
        pyro.factor("f", -0.3 * z, has_rsample=True)

    values = losses(make(cls, beta=4.0, **PARTICLES), model, with_factor)
    assert_mean(values, torch.tensor(4 * (KL - 0.3)))


@pytest.mark.parametrize("name", ["AutoNormalMessenger", "AutoHierarchicalNormalMessenger"])
@pytest.mark.parametrize("cls", ALL_LOSSES[:-1], ids=lambda cls: cls.__name__)
def test_autonormalmessenger_autohierarchicalnormalmessenger(cls, name):
    """True 10.65, and 14.92 if the likelihood is scaled too: guide N(1, 0.1), x = 0, beta = 4.

    (`TraceEnum_ELBO` takes no messenger.)
    """

    def observed():
        z = model()
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    kl = math.log(10) + 0.5 * (0.01 + 1) - 0.5
    nll = 0.5 * math.log(2 * math.pi) + 0.5 * (0.01 + 1)
    assert (round(4 * kl + nll, 2), math.floor(400 * (kl + nll)) / 100) == (10.65, 14.92)
    auto = auto_guide(getattr(autoguide, name), observed, init_scale=0.1)
    assert_mean(losses(make(cls, beta=4.0), observed, auto), torch.tensor(4 * kl + nll))


@every_loss
def test_splitreparam_and_the_like(cls):
    """True 6.55 (not -2.72): two entries, the prior in an observed Delta, beta = 4."""

    def split_guide():
        pyro.sample("z_split_0", dist.Normal(torch.ones(1), 0.5).to_event(1))
        pyro.sample("z_split_1", dist.Normal(torch.ones(1), 0.5).to_event(1))

    split = poutine.reparam(vector, config={"z": SplitReparam([1, 1], -1)})
    assert round(8 * KL, 2) == 6.55
    assert_mean(losses(make(cls, beta=4.0, **PARTICLES), split, split_guide), torch.tensor(8 * KL))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
@loss_classes
def test_c_enumerated_by_the_model_above_z(cls, beta, outside):
    """The prior of z is log sum_c p(c) p(z|c), weighed once."""
    weights = torch.tensor([0.3, 0.7])

    def local():
        return pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})

    def mixture():
        c = local() if outside else None
        with pyro.plate("data", 4):
            c = local() if c is None else c
            z = pyro.sample("z", dist.Normal(2.0 * c - 1.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.7), obs=torch.ones(4))

    draws = []

    def z_guide():
        with pyro.plate("data", 4):
            draws.append(pyro.sample("z", dist.Normal(torch.tensor(0.5), 0.4)))

    terms = cls(beta=beta, max_plate_nesting=1).decompose(mixture, z_guide)
    q, z = dist.Normal(0.5, 0.4), draws[-1]
    components = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(z[:, None])
    components = components.sum(0, keepdim=True) if outside else components
    log_prior = (components + weights.log()).logsumexp(-1).sum()
    log_guide = -4 * q.entropy() if terms.sites["z"].how["log_guide"] == "exact" else None
    log_guide = q.log_prob(z).sum() if log_guide is None else log_guide
    log_likelihood = dist.Normal(z, 0.7).log_prob(torch.ones(())).sum()
    assert_close(terms.expected_log_prior, log_prior, 10.0)
    assert_close(terms.objective, log_likelihood + beta * (log_prior - log_guide), 100.0)
    assert "marginalised over c" in terms.sites["z"].why


def beside_a_score(site, prior):
    """A coin with logit 0, and beside it a factor 0.5 z, or u ~ N(0, 1.7) or N(0, 0.75) given z."""

    def coin_model():
        pyro.sample("z", dist.Bernoulli(torch.tensor(prior)))

    def coin_guide():
        z = pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit")))
        if site == "factor":
            pyro.factor("f", 0.5 * z, has_rsample=True)
        else:
            fn = dist.Normal(0.0, 1.7 + (0.75 - 1.7) * z)
            pyro.sample("u", fn, infer={"is_auxiliary": True})

    return coin_model, coin_guide


@pytest.mark.parametrize(
    ("site", "prior", "log_ratio", "true"),
    [("guide-only site", 0.8, math.log(1.7 / 0.75), -0.142), ("factor", 0.25, 0.5, 0.400)],
    ids=["guide-only site", "guide factor"],
)
@loss_classes
def test_a_score_function_site_beside(cls, site, prior, log_ratio, true):
    """Gradients -0.142 and 0.400, where `Trace_ELBO` gives -0.347 and 0.275."""
    exact = 0.25 * (math.log((1 - prior) / prior) + log_ratio)
    assert round(exact, 3) == true
    elbo = cls(**PARTICLES)
    logit = pyro.param("logit", torch.tensor(0.0))
    _, gradients = losses_and_grads(elbo, *beside_a_score(site, prior), [logit])
    assert_mean(gradients[0], torch.tensor(exact))


@every_loss
def test_beta_and_plate_scale_in_a_sequential_plate(cls):
    """Scale 4 * 10 at each latent of two out of twenty."""

    def in_plate(scale):
        def program():
            for i in pyro.plate("data", 20, subsample_size=2):
                loc = torch.zeros(()) if scale == 1.0 else torch.ones(())
                pyro.sample(f"z_{i}", dist.Normal(loc, scale))

        return program

    values = losses(make(cls, beta=4.0, **PARTICLES), in_plate(1.0), in_plate(0.5))
    assert_mean(values, torch.tensor(4 * 20 * KL))

"""Closed forms: one test for each way in which Pyro's, or a reader's, are wrong."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO, autoguide
from support import LOSSES, assert_close, assert_mean
from torch.distributions import kl_divergence
from weighted import (
    E_LOG_P,
    E_LOG_Q,
    KL,
    PARTICLES,
    assert_mean_is_one_of,
    auto_guide,
    guide,
    loss_classes,
    losses,
    losses_and_grads,
    mixed,
    model,
)

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO

CONSTRAINED = {
    "LogNormal": lambda: dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
    "Gamma": lambda: dist.Gamma(2 * torch.ones(2), 1.0).to_event(1),
    "Beta": lambda: dist.Beta(2 * torch.ones(2), 3.0).to_event(1),
    "Dirichlet": lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
}
AUTOGUIDES = ["AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoNormalMessenger"]


def positive():
    pyro.sample("z", dist.LogNormal(torch.zeros(()), 1.0))


@pytest.mark.parametrize("name", AUTOGUIDES)
@loss_classes
def test_any_autoguide_on_a_constrained_site(cls, name):
    """True loss 0.92: log z ~ N(log 3, 0.5) under the guide and N(0, 1) under the model."""
    auto = auto_guide(getattr(autoguide, name), positive, 3.0, init_scale=0.5)
    exact = math.log(2) + 0.5 * (0.25 + math.log(3) ** 2) - 0.5
    assert round(exact, 2) == 0.92
    assert_mean(losses(cls(), positive, auto, count=200), torch.tensor(exact))


def test_any_autoguide_on_a_constrained_site_in_pyro():
    """`TraceMeanField_ELBO` drops the Jacobian, whose log has the mean log 3: 2.02."""
    auto = auto_guide(autoguide.AutoNormal, positive, 3.0, init_scale=0.5)
    exact = math.log(2) + 0.5 * (0.25 + math.log(3) ** 2) - 0.5
    values = losses(TraceMeanField_ELBO(), positive, auto, count=200)
    assert_mean_is_one_of(values, exact + math.log(3), exact)


@pytest.mark.parametrize("name", CONSTRAINED)
@loss_classes
def test_every_view_equals_trace_elbo_on_a_constrained_site(cls, name):
    def constrained():
        pyro.sample("z", CONSTRAINED[name]())

    auto = autoguide.AutoNormal(constrained, init_scale=0.5)
    auto()
    ours = losses(cls(), constrained, auto)
    assert_mean(ours - losses(Trace_ELBO(), constrained, auto, seed=1), torch.zeros(()))


@loss_classes
def test_the_fit_of_autonormal_to_lognormal_ends_at_median_1(cls):
    """Without the Jacobian it ends at exp(-1) = 0.37. The mean of log z decays by 0.9 a step."""

    def replicas():
        with pyro.plate("fits", 50):
            pyro.sample("z", dist.LogNormal(torch.zeros(()), 1.0))

    auto = auto_guide(autoguide.AutoNormal, replicas, 3 * torch.ones(50), init_scale=0.5)
    svi = SVI(replicas, auto, pyro.optim.SGD({"lr": 0.1}), cls())
    for _ in range(200):
        svi.step()
    assert_mean(auto.locs.z.detach(), torch.zeros(()))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("name", ["AutoNormal", "AutoNormalMessenger"])
def test_autonormal_on_a_real_site(name, vectorize):
    """It has closed forms, and `terms.sites` says so."""

    def latent():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    auto = auto_guide(getattr(autoguide, name), latent, torch.ones(3), init_scale=0.5)
    particles = {"num_particles": 4, "vectorize_particles": vectorize}
    terms = TraceKL_ELBO(beta=4.0, **particles).decompose(latent, auto)
    assert terms.sites["z"].how == dict.fromkeys(("log_prior", "log_guide", "kl"), "exact")
    assert_close(terms.sites["z"].kl, torch.full((3,), KL))
    assert_close(terms.objective, torch.tensor(-12 * KL))
    terms = TraceEntropy_ELBO(**particles).decompose(latent, auto)
    assert terms.sites["z"].how["log_guide"] == "exact"
    assert_close(terms.entropy, 3 * dist.Normal(1.0, 0.5).entropy())


def in_plate(program):
    def inner():
        with pyro.plate("data", 10):
            program()

    return inner


@pytest.mark.parametrize("masked", ["model", "guide", "both"])
@loss_classes
def test_mask_on_one_side_only(cls, masked):
    """5 of 10 masked: model only 0.46, guide only 11.81, both 4.09; one warning names the site."""
    mask = poutine.mask(mask=torch.arange(10) < 5)
    counts = {"model": 5 if masked != "guide" else 10, "guide": 5 if masked != "model" else 10}
    exact = counts["guide"] * E_LOG_Q - counts["model"] * E_LOG_P
    assert round(exact, 2) == {"model": 0.46, "guide": 11.81, "both": 4.09}[masked]
    on_model = in_plate(model) if masked == "guide" else mask(in_plate(model))
    on_guide = in_plate(guide) if masked == "model" else mask(in_plate(guide))
    elbo = cls()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert_mean(losses(elbo, on_model, on_guide), torch.tensor(exact))
    differs = masked != "both" and cls is TraceKL_ELBO
    assert ["site 'z': its mask differs" in str(w.message) for w in caught] == [True] * differs
    closed = masked == "both" and cls is TraceKL_ELBO
    assert elbo.terms.sites["z"].how["kl"] == ("exact" if closed else "sampled")


@pytest.mark.parametrize("name", ["AutoNormal", "AutoNormalMessenger"])
@loss_classes
def test_obs_mask_with_an_autoguide(cls, name):
    """The scales at observed entries never move, and cost nothing (with Pyro they grow to 24)."""
    observed, data = torch.tensor([True, True, False, True, False]), torch.linspace(-1, 1, 5)

    def partly_observed():
        with pyro.plate("data", 5):
            pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=data, obs_mask=observed)

    start = autoguide.init_to_value(values={"x_unobserved": torch.ones(5)})
    auto = getattr(autoguide, name)(partly_observed, init_loc_fn=start, init_scale=0.5)
    auto()
    nll = -dist.Normal(0.0, 1.0).log_prob(data)[observed].sum()
    assert_mean(losses(cls(), partly_observed, auto), 2 * KL + nll)
    before = auto.scales.x_unobserved.detach().clone()
    svi = SVI(partly_observed, auto, pyro.optim.Adam({"lr": 0.05}), cls())
    for _ in range(20):
        svi.step()
    assert torch.equal(auto.scales.x_unobserved[observed], before[observed])
    assert (auto.scales.x_unobserved != before)[~observed].all()


def scaled_prior():
    with poutine.scale(scale=3.0):
        z = model()
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))


@pytest.mark.filterwarnings("ignore:site 'z'.*scale")
@pytest.mark.parametrize("cls", [*LOSSES, mixed(Trace_ELBO)], ids=lambda cls: cls.__name__)
def test_scale_on_one_side_only(cls):
    """True 5.45 (3 on the model, x = 0); a closed KL with the guide's scale would give 2.36."""
    exact = E_LOG_Q - 3 * E_LOG_P - E_LOG_P
    assert round(exact, 2) == 5.45
    assert round(KL - E_LOG_P, 2) == 2.36
    elbo = cls()
    assert_mean(losses(elbo, scaled_prior, guide), torch.tensor(exact))
    if cls in LOSSES:
        assert elbo.terms.sites["z"].how["kl"] == "sampled"


@pytest.mark.parametrize("validation", [True, False])
@loss_classes
def test_bernoulli_guide_in_closed_form(cls, validation):
    """True gradient -0.283; without the score of the reconstruction it is -0.178."""
    logit = pyro.param("logit", torch.tensor(math.log(0.3 / 0.7)))
    pyro.enable_validation(validation)

    def coin_model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def coin_guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit")))

    q = dist.Bernoulli(logits=logit)
    kl = kl_divergence(q, dist.Bernoulli(torch.tensor(0.5)))
    exact, kl_alone = (
        torch.autograd.grad(loss, logit, retain_graph=True)[0] for loss in (kl - 0.5 * q.probs, kl)
    )
    assert (round(exact.item(), 3), round(kl_alone.item(), 3)) == (-0.283, -0.178)
    elbo = cls(**PARTICLES)
    _, gradients = losses_and_grads(elbo, coin_model, coin_guide, [logit])
    assert_mean(gradients[0], exact)
    plan = elbo.plan(coin_model, coin_guide)["z"]
    assert plan.gradient == "score function"
    assert plan.kl == ("exact" if cls is TraceKL_ELBO else "sampled")
    assert plan.entropy == ("sampled" if cls is TraceGap_ELBO else "exact")


@pytest.mark.filterwarnings("ignore:site 'b'.*depends on it in the guide")
@loss_classes
def test_the_guides_dependency_reversed(cls):
    """True 0.50, where KLs in closed form add up to 1.50: the posterior, a shifted by 1/sqrt(2)."""

    def chain():
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    def reversed_guide():
        b = pyro.sample("b", dist.Normal(torch.zeros(()), 2**0.5))
        pyro.sample("a", dist.Normal(b / 2 + 0.5**0.5, 0.5**0.5))

    shift = kl_divergence(dist.Normal(0.5**0.5, 0.5**0.5), dist.Normal(0.0, 0.5**0.5))
    assert round(shift.item(), 12) == 0.5
    elbo = cls(**PARTICLES)
    assert_mean(losses(elbo, chain, reversed_guide), shift)
    assert elbo.terms.sites["b"].how["kl"] == "sampled"
    if cls is TraceKL_ELBO:
        with pytest.warns(UserWarning, match="site 'b'.*depends on it in the guide"):
            cls().loss(chain, reversed_guide)

"""Annealed importance sampling: unbiased at any number of temperatures, and tight with many."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from support import assert_close, assert_mean

from pyro_elbo import UnsupportedSiteError, reference
from pyro_elbo.evidence import AnnealedImportance, BidirectionalMonteCarlo, ImportanceWeighting
from pyro_elbo.evidence.annealed import prior_of
from pyro_elbo.evidence.weigher import Weigher

COUNTS = torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64)
X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def rates(size=None):
    """A site with a constraint in each plate, another for all data."""
    with pyro.plate("data", 3, size) as indices:
        rate = pyro.sample("rate", dist.Gamma(2.0, torch.tensor(1.0)))
        pyro.sample("x", dist.Poisson(rate), obs=COUNTS[indices])


def rates_guide(size=None):
    with pyro.plate("data", 3, size) as indices:
        pyro.sample("rate", dist.Gamma(1.0 + COUNTS[indices], 1.2))


a = COUNTS + 2
RATES = a.lgamma() - a * torch.tensor(2.0).log() - (COUNTS + 1).lgamma()


def shared():
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


SHARED = dist.MultivariateNormal(torch.zeros(3), 2 * torch.eye(3) + 1).log_prob(X.float()).double()


def moved(cls, model, step=0.1):
    """Wider than the posterior, so that the weights have a variance."""
    pyro.set_rng_seed(1)
    guide = cls(model, init_scale=1.3) if cls is not AutoDelta else cls(model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(step * torch.randn_like(parameter))
    return guide


CASES = {
    "by datum": (rates, rates_guide, RATES, "guide"),
    "from the prior": (rates, None, RATES, "prior"),
    "AutoNormal": (rates, AutoNormal, RATES, "guide"),
    "shared": (shared, AutoNormal, SHARED, "guide"),
    "joint": (shared, AutoDiagonalNormal, SHARED, "guide"),
    "shared, from the prior": (shared, None, SHARED, "prior"),
}


def built(name):
    model, guide, exact, start = CASES[name]
    return model, moved(guide, model) if isinstance(guide, type) else guide, exact, start


def log_weights(estimator, model, guide, *args):
    """Of particles that share nothing but the step sizes of the pilot run."""
    start = guide if estimator.start == "guide" else prior_of(model)
    weigher = Weigher(model, start, args, {}, None)
    with estimator.bar(2) as bar:
        run = [estimator.run(weigher, batch, bar) for batch in weigher.batches()]
        batches = zip(run, weigher.batches(), strict=True)
        parts = [batch.keep(each.forward(estimator.num_samples)) for each, batch in batches]
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("name", CASES)
def test_the_mean_weight_is_the_evidence(name):
    """With few and rough steps: what is left unbiased is no matter of tuning."""
    model, guide, exact, start = built(name)
    estimator = AnnealedImportance(4000, 3, 2, start=start, progress=False)
    ratios = (log_weights(estimator, model, guide) - exact).exp()
    assert ratios.std(0).min() > 0.01
    assert_mean(ratios, torch.ones_like(exact))


def test_minibatches_are_gone_through():
    estimator = AnnealedImportance(4000, 3, 2, progress=False)
    ratios = (log_weights(estimator, rates, rates_guide, 2) - RATES).exp()
    assert_mean(ratios, torch.ones(3))
    estimate = AnnealedImportance(50, 3, 2, progress=False).estimate(rates, rates_guide, 2)
    assert estimate.per_datum.indices.tolist() == [0, 1, 2]
    assert_close(estimate.value, estimate.per_datum.value.sum(), 10.0)


@pytest.mark.parametrize("cls", [reference.ConjugateNormal, reference.HierarchicalNormal])
def test_the_posterior_gives_the_evidence_with_every_particle(cls):
    problem = cls()
    problem.set_guide_to_posterior()
    estimate = AnnealedImportance(3, 5, progress=False).estimate(
        problem.model, problem.guide, *problem.args
    )
    assert_close(estimate.value, problem.log_evidence().detach(), 100.0, ulps=256)


Y = dist.Normal(0.0, 2.0).icdf(torch.linspace(0.01, 0.99, 49, dtype=torch.float64))


def funnel():
    v = pyro.sample("v", dist.Normal(torch.zeros(()), 1.5))
    with pyro.plate("dims", 49):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), (v / 2).exp()))
        pyro.sample("y", dist.Normal(z, 0.5), obs=Y)


def flat():
    pyro.sample("v", dist.Normal(torch.zeros(()), 1.5))
    with pyro.plate("dims", 49):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def exact_funnel():
    """By quadrature over the one latent that is left when the others are integrated out."""
    v = torch.linspace(-15.0, 15.0, 20_001)
    marginal = dist.Normal(0.0, (v.exp() + 0.25).sqrt()[:, None])
    log_joint = dist.Normal(0.0, 1.5).log_prob(v) + marginal.log_prob(Y).sum(-1)
    return torch.logsumexp(log_joint, 0) + (v[1] - v[0]).log()


@pytest.mark.slow
def test_it_tightens_where_importance_weights_fail():
    """A funnel of 50 dimensions with data, and a guide that knows no funnel."""
    weighted = ImportanceWeighting(20_000, progress=False).estimate(funnel, flat)
    annealed = AnnealedImportance(50, 300, 8, progress=False).estimate(funnel, flat)
    longer = AnnealedImportance(50, 1200, 8, progress=False).estimate(funnel, flat)
    assert weighted.khat > 1
    assert annealed.value > weighted.value + 3 * annealed.standard_error
    assert longer.value > annealed.value
    assert (longer.value - exact_funnel()).abs() < 5 * longer.standard_error


def linear(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def hierarchy(x):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact_linear(x):
    return dist.Normal(0.0, 1.25**0.5).log_prob(x).sum()


def exact_hierarchy(x):
    covariance = 2 * torch.eye(len(x)) + 1
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x)


SIMULATED = {"by datum": (linear, exact_linear), "shared": (hierarchy, exact_hierarchy)}


@pytest.mark.parametrize("name", [pytest.param("by datum", marks=pytest.mark.slow), "shared"])
def test_both_bounds_are_unbiased_in_their_weights(name):
    """The mean weight forwards, and the mean inverse weight backwards, on any data."""
    model, exact = SIMULATED[name]
    annealing = AnnealedImportance(2, 3, 2, start="prior", progress=False)
    below, above = [], []
    for _ in range(60):
        interval = BidirectionalMonteCarlo(annealing).estimate(model, None, X[:2])
        truth = exact(interval.data["x"])
        below.append((interval.lower.value - truth).exp())
        above.append((truth - interval.upper.value).exp())
    assert_mean(torch.stack(below), torch.ones(()))
    assert_mean(torch.stack(above), torch.ones(()))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIMULATED)
def test_the_interval_holds_the_truth_on_20_data_sets(name):
    model, exact = SIMULATED[name]
    annealing = AnnealedImportance(30, 150, start="prior", progress=False)
    for seed in range(20):
        pyro.set_rng_seed(seed)
        interval = BidirectionalMonteCarlo(annealing).estimate(model, None, torch.zeros(4))
        assert interval.contains(exact(interval.data["x"]), num_standard_errors=6)
        error = interval.lower.standard_error + interval.upper.standard_error
        assert interval.width > -6 * error
        assert interval.width < 2.0


def test_from_a_guide_at_simulated_data():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))

    interval = BidirectionalMonteCarlo(AnnealedImportance(5, 4, progress=False)).estimate(
        linear, guide, X
    )
    exact = exact_linear(interval.data["x"])
    assert_close(interval.lower.value, exact, 100.0, ulps=256)
    assert_close(interval.upper.value, exact, 100.0, ulps=256)
    assert not torch.equal(interval.data["x"], X)
    assert "on simulated data" in str(interval)
    given = BidirectionalMonteCarlo(
        AnnealedImportance(5, 4, progress=False), arguments=lambda data: ((data["x"],), {})
    )
    assert given.estimate(linear, guide, X).contains(0.0) is False


def coin():
    pyro.sample("c", dist.Bernoulli(0.3))


def with_factor(x):
    linear(x)
    pyro.factor("f", torch.tensor(0.3))


def test_what_cannot_be_annealed_is_refused():
    annealing = AnnealedImportance(2, 2, progress=False)
    with pytest.raises(UnsupportedSiteError, match="'c'.*discrete.*ImportanceWeighting"):
        annealing.estimate(coin, coin)
    with pytest.raises(UnsupportedSiteError, match="'z'.*no density"):
        annealing.estimate(linear, AutoDelta(linear), X)
    bidirectional = BidirectionalMonteCarlo(annealing)
    guide = AutoNormal(linear)
    guide(X)
    with pytest.raises(UnsupportedSiteError, match="'z_unconstrained'.*start='prior'"):
        bidirectional.estimate(linear, guide, X)
    with pytest.raises(UnsupportedSiteError, match="'f'.*factor"):
        bidirectional.estimate(with_factor, guide, X)


def test_bad_input():
    for kwargs, match in (
        ({"num_samples": 1}, "num_samples must be an integer >= 2"),
        ({"num_temperatures": 0}, "num_temperatures must be"),
        ({"num_leapfrog_steps": 0}, "num_leapfrog_steps must be"),
        ({"start": "posterior"}, "start must be 'guide' or 'prior'"),
    ):
        with pytest.raises(ValueError, match=match):
            AnnealedImportance(**kwargs)


def test_parameters_are_left_alone():
    guide = moved(AutoNormal, rates)
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    AnnealedImportance(2, 2, progress=False).estimate(rates, guide)
    for parameter, kept in zip(guide.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)
        assert parameter.grad is None

"""The evidence by importance weights and by enumeration: exact where it can be, never too high."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from support import assert_close, assert_mean

from pyro_elbo import UnsupportedSiteError, reference
from pyro_elbo.evidence import Enumeration, ImportanceWeighting
from pyro_elbo.evidence.weigher import Weigher
from pyro_elbo.evidence.weights import LogWeights

X = torch.tensor([0.5, -1.0, 2.0, 0.3, 1.2, -0.4], dtype=torch.float64)
LOCAL = dist.Normal(0.0, 2**0.5).log_prob(X)


def local(x=X, size=None, scale=1.0):
    with pyro.plate("data", len(x), size) as indices, poutine.scale(scale=scale):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])


def wide(x=X, size=None, scale=1.0):
    """Wider than the posterior, so that the weights are bounded."""
    with pyro.plate("data", len(x), size) as indices, poutine.scale(scale=scale):
        pyro.sample("z", dist.Normal(x[indices] / 2, 0.9))


def shared(x=X, size=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x), size) as indices:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])


def shared_guide(x=X, size=None):
    precision = 1 + len(x) / 2
    mu = pyro.sample("mu", dist.Normal(x.sum() / 2 / precision, 1.2 * precision**-0.5))
    with pyro.plate("data", len(x), size) as indices:
        pyro.sample("z", dist.Normal((mu + x[indices]) / 2, 0.9))


SHARED = dist.MultivariateNormal(torch.zeros(6), 2 * torch.eye(6) + 1).log_prob(X.float()).double()


def shared_only(x=X, size=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", len(x), size) as indices:
        pyro.sample("x", dist.Normal(mu, 2**0.5), obs=x[indices])


def shared_only_guide(x=X, size=None):
    precision = 1 + len(x) / 2
    pyro.sample("mu", dist.Normal(x.sum() / 2 / precision, 1.2 * precision**-0.5))


def discrete(x=X, size=None):
    with pyro.plate("data", len(x), size) as indices:
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(1.0 * c, 1.0), obs=x[indices])


def discrete_guide(x=X, size=None):
    with pyro.plate("data", len(x), size):
        infer = {"enumerate": "parallel"}
        pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.4, 0.3])), infer=infer)


COMPONENTS = dist.Normal(torch.arange(3.0, dtype=torch.float64), 1.0).log_prob(X[:, None])
MIXTURE = (COMPONENTS + torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()).logsumexp(-1)


def summed_out(x=X, size=None):
    with pyro.plate("data", len(x), size) as indices:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=x[indices])


def summed_out_guide(x=X, size=None):
    with pyro.plate("data", len(x), size) as indices:
        pyro.sample("z", dist.Normal((x[indices] - 0.3) / 2, 0.9))


SUMMED = torch.logaddexp(
    dist.Normal(0.0, 2**0.5).log_prob(X) + np.log(0.7),
    dist.Normal(1.0, 2**0.5).log_prob(X) + np.log(0.3),
)
PROGRAMS = {
    "local": (local, wide, LOCAL),
    "shared": (shared_only, shared_only_guide, SHARED),
    "nested": (shared, shared_guide, SHARED),
    "discrete": (discrete, discrete_guide, MIXTURE),
    "summed out": (summed_out, summed_out_guide, SUMMED),
}


def repeated(estimator, count, model, guide, *args):
    weigher = Weigher(model, guide, args, {}, estimator.plate)
    return [estimator.weigh(weigher) for _ in range(count)]


@pytest.mark.parametrize(
    "size",
    [pytest.param(None, id="full"), pytest.param(4, marks=pytest.mark.slow, id="minibatches")],
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_mean_weight_is_the_evidence(name, size):
    """Two samples suffice: ``exp`` of the estimate is unbiased, here for a bounded weight."""
    model, guide, exact = PROGRAMS[name]
    estimator = ImportanceWeighting(2, num_local_samples=2, progress=False)
    estimates = repeated(estimator, 300, model, guide, X, size)
    if exact.dim():
        ratios = torch.stack([(e.per_datum.value - exact).exp() for e in estimates])
        assert_mean(ratios, torch.ones(6))
        assert_close(estimates[0].value, estimates[0].per_datum.value.sum(), 30.0)
        assert estimates[0].per_datum.indices.tolist() == list(range(6))
    else:
        assert estimates[0].per_datum is None
        assert "mu" in estimates[0].why_no_datum
        assert_mean(torch.stack([(e.value - exact).exp() for e in estimates]), torch.ones(()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_error_is_that_of_the_estimate(name):
    model, guide, exact = PROGRAMS[name]
    estimator = ImportanceWeighting(400, num_local_samples=20, progress=False)
    estimates = repeated(estimator, 150, model, guide, X)
    z = torch.stack([(e.value - exact.sum()) / e.standard_error for e in estimates])
    assert_mean(z.square(), torch.ones(()))
    assert all(e.bound == "lower" and e.reliable for e in estimates)


PROBLEMS = {
    "ConjugateNormal": reference.ConjugateNormal,
    "HierarchicalNormal": reference.HierarchicalNormal,
    "subsampled": lambda: reference.HierarchicalNormal(subsample_size=3),
    "BetaBernoulli": reference.BetaBernoulli,
    "GaussianMixture": reference.GaussianMixture,
    "LinearVAE": reference.LinearVAE,
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_posterior_gives_the_evidence_with_every_sample(name):
    problem = PROBLEMS[name]()
    if isinstance(problem, reference.LinearVAE):
        problem.fit_maximum_likelihood()
    problem.set_guide_to_posterior()
    estimate = ImportanceWeighting(3, num_local_samples=2, progress=False).estimate(
        problem.model, problem.guide, *problem.args
    )
    exact = problem.log_evidence().detach()
    assert_close(estimate.value, exact, 100.0, ulps=256)
    assert_close(estimate.ess, torch.tensor(3.0), ulps=1 << 24)
    assert estimate.khat.isnan()


def test_scales_are_left_out():
    estimates = []
    for scale in (1.0, 0.01, 30.0):
        pyro.set_rng_seed(0)
        estimator = ImportanceWeighting(50, progress=False)
        estimates.append(estimator.estimate(local, wide, X, None, scale).value)
    assert_close(estimates[1], estimates[0])
    assert_close(estimates[2], estimates[0])


def test_a_minibatch_as_argument_is_scaled_up_with_its_error():
    """PITFALLS: RenyiELBO is above the truth here, or falls back to the ELBO."""
    data = torch.linspace(-3.0, 3.0, 40)
    exact = dist.Normal(0.0, 2**0.5).log_prob(data).sum()

    def model(x):
        with pyro.plate("data", 40, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def posterior(x):
        with pyro.plate("data", 40, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    estimator = ImportanceWeighting(2, progress=False)
    draws = [data[torch.randperm(40)[:30]] for _ in range(80)]
    estimates = [estimator.estimate(model, posterior, x) for x in draws]
    values = torch.stack([estimate.value for estimate in estimates])
    errors = torch.stack([estimate.standard_error for estimate in estimates])
    assert_mean(values, exact)
    assert_mean(((values - exact) / errors).square(), torch.ones(()))
    with pytest.warns(UserWarning, match="minibatch of plate 'data' is one datum"):
        assert estimator.estimate(model, posterior, data[:1]).standard_error.isnan()


def test_a_shared_latent_needs_all_minibatches():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 40, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(UnsupportedSiteError, match="'mu'.*minibatch of plate 'data'.*indices"):
        ImportanceWeighting(10).estimate(model, guide, X)


@pytest.mark.parametrize("cls", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_on_a_constrained_site(cls):
    """A gamma prior and Poisson counts: the evidence is that of a negative binomial sequence."""
    counts = torch.tensor([3.0, 1.0, 4.0])

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Poisson(rate), obs=counts)

    a, b, total = torch.tensor(2.0), torch.tensor(1.0), counts.sum()
    exact = a * b.log() - a.lgamma() - (counts + 1).lgamma().sum()
    exact = exact + (a + total).lgamma() - (a + total) * (b + 3).log()
    guide = cls(model, init_loc_fn=lambda site: torch.tensor(2.2), init_scale=0.5)
    estimates = repeated(ImportanceWeighting(500, progress=False), 40, model, guide)
    assert_mean(torch.stack([(e.value - exact).exp() for e in estimates]), torch.ones(()))


def test_nested_plates_each_have_their_own_factor():
    x = torch.linspace(-1.0, 1.0, 12).reshape(3, 4)

    def model():
        with pyro.plate("columns", 4, dim=-1):
            m = pyro.sample("m", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("rows", 3, dim=-2):
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def posterior():
        with pyro.plate("columns", 4, dim=-1):
            pyro.sample("m", dist.Normal(x.sum(0) / 4, 0.5))

    estimate = ImportanceWeighting(2, progress=False).estimate(model, posterior)
    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x.T)
    assert estimate.per_datum.plates == ("columns",)
    assert_close(estimate.per_datum.value, exact, 10.0)


def test_the_tail_is_that_of_all_weights():
    """k-hat by chunks is ArviZ' own; ESS and mean are those of all weights at once."""
    log_weights = dist.StudentT(3.0).sample((5000, 2))
    weights = LogWeights(5000)
    for chunk in log_weights.split(700):
        weights.add(chunk)
    expected = az.psislw(log_weights.T.numpy())[1]
    assert_close(weights.khat, torch.as_tensor(expected), ulps=1 << 20)
    assert_close(weights.log_mean, log_weights.logsumexp(0) - np.log(5000), 10.0)
    normalised = log_weights.softmax(0)
    assert_close(weights.ess, 1 / normalised.square().sum(0), ulps=1 << 16)


def test_enumeration_is_exact():
    def chain(x, size=None):
        with pyro.plate("sequences", 2):
            c = torch.tensor(0)
            for t in pyro.markov(range(3)):
                probs = torch.tensor([[0.3, 0.7], [0.6, 0.4]])[c]
                c = pyro.sample(f"c_{t}", dist.Categorical(probs))
                pyro.sample(f"x_{t}", dist.Normal(1.0 * c, 1.0), obs=x.reshape(3, 2)[t])

    estimate = Enumeration().estimate(discrete, None, X)
    assert_close(estimate.per_datum.value, MIXTURE, 10.0)
    assert estimate.bound == "exact"
    assert not estimate.standard_error
    assert_close(Enumeration().estimate(discrete, None, X, 4).per_datum.value, MIXTURE, 10.0)
    exact = Enumeration().estimate(chain, None, X)
    guide = poutine.block(chain, hide_fn=lambda msg: msg["is_observed"])
    sampled = repeated(ImportanceWeighting(200, progress=False), 50, chain, guide, X)
    ratios = [(e.per_datum.value - exact.per_datum.value).exp() for e in sampled]
    assert_mean(torch.stack(ratios), torch.ones(2))


@pytest.mark.parametrize(
    ("model", "guide", "match"),
    [
        (local, lambda x: None, "'z' is not sampled by the guide"),
        (local, AutoDelta(local), "'z'.*no density"),
        (poutine.mask(local, False), wide, "'z'.*masks differ"),
    ],
    ids=["missing", "point mass", "mask"],
)
def test_what_gives_no_weights_is_refused(model, guide, match):
    with pytest.raises((ValueError, UnsupportedSiteError), match=match):
        ImportanceWeighting(10).estimate(model, guide, X)


def test_a_joint_guide_has_no_data_of_their_own():
    guide = AutoDiagonalNormal(local)
    guide(X)
    estimate = ImportanceWeighting(10, progress=False).estimate(local, guide, X)
    assert estimate.per_datum is None
    with pytest.raises(UnsupportedSiteError, match="_AutoDiagonalNormal_latent.*'data'"):
        ImportanceWeighting(10, plate="data").estimate(local, guide, X)


def test_data_that_are_not_independent_are_refused():
    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[:3])
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=torch.tensor(1.0))

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(X[:3] / 2, 1.0))

    with pytest.raises(UnsupportedSiteError, match="'y'.*depend on x, z"):
        ImportanceWeighting(10, plate="data").estimate(model, guide)


def test_bad_input():
    for count in (0, 1, 1.5, True):
        with pytest.raises(ValueError, match="num_samples must be an integer >= 2"):
            ImportanceWeighting(count)
    with pytest.raises(ValueError, match=r"plate 'rows'; the plates are: \['data'\]"):
        ImportanceWeighting(2, plate="rows").estimate(local, wide, X)
    with pytest.raises(UnsupportedSiteError, match="'z'.*no finite support"):
        Enumeration().estimate(local, None, X)

    def impossible():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", torch.where(z.abs() < 99, -torch.inf, 0.0))

    def infinite():
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", torch.tensor(torch.inf))

    def guide():
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    with pytest.raises(ValueError, match="every sample of the guide has weight 0"):
        ImportanceWeighting(5, progress=False).estimate(impossible, guide)
    with pytest.raises(ValueError, match=r"infinite or nan, from the sites \['f'\]"):
        ImportanceWeighting(5, progress=False).estimate(infinite, guide)


def test_nothing_is_left_behind():
    guide = AutoNormal(local)
    guide(X)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    ImportanceWeighting(20, progress=False).estimate(local, guide, X)
    for name, parameter in guide.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_estimates_print_what_they_claim():
    pyro.set_rng_seed(0)
    estimate = ImportanceWeighting(100, progress=False).estimate(local, wide, X)
    assert str(estimate).startswith("log p(x) ≥ -")
    assert "100 samples" in str(estimate)
    assert str(Enumeration().estimate(discrete, None, X)).endswith("nats (exact)")
    tight = config_enumerate(discrete)
    assert str(Enumeration().estimate(tight, None, X)).endswith("nats (exact)")

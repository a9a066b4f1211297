"""Programs that mix samples or data up: right all the same, or refused by name."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_elbo import UnsupportedSiteError, diagnostics, evidence

XS = torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
one_by_one = pytest.mark.filterwarnings("ignore:the program gives other numbers")


def weighting(count=400, **kwargs):
    return evidence.ImportanceWeighting(count, progress=False, **kwargs)


def assert_is(estimate, exact):
    assert (estimate.value - exact).abs() < 6 * estimate.standard_error


def slope_evidence(scale):
    covariance = scale**2 * torch.eye(5) + XS[:, None] * XS
    return dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(XS)


def indexed(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    with pyro.plate("n", 5):
        pyro.sample("y", dist.Normal(w[0] * XS, 0.5), obs=y)


def indexed_guide(y):
    pyro.sample("w", dist.Normal(torch.full((1,), 0.9), 1.0).to_event(1))


def two_weights(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("n", 5):
        pyro.sample("y", dist.Normal(torch.stack([XS, 0 * XS], -1) @ w, 0.5), obs=y)


def two_weights_guide(y):
    pyro.sample("w", dist.Normal(torch.tensor([0.9, 0.0]), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("model", "guide"), [(indexed, indexed_guide), (two_weights, two_weights_guide)]
)
def test_a_regression_that_indexes_from_the_left_is_evaluated_one_by_one(model, guide):
    with pytest.warns(UserWarning, match=r"evaluated one by one; .* w\[..., 0\]"):
        estimate = weighting().estimate(model, guide, XS)
    assert_is(estimate, slope_evidence(0.5))


@one_by_one
def test_the_gap_of_such_a_program_is_right():
    gap = diagnostics.evidence_gap(indexed, indexed_guide, XS, num_samples=400, progress=False)
    precision = 1 + 4 * (XS**2).sum()
    posterior = dist.Normal(4 * (XS**2).sum() / precision, precision**-0.5)
    exact = torch.distributions.kl_divergence(dist.Normal(0.9, 1.0), posterior)
    assert (gap.value - exact).abs() < 6 * gap.standard_error


def summed(s):
    with pyro.plate("n", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("s", dist.Normal(z.sum(-1), 1.0), obs=s)


def summed_guide(s):
    with pyro.plate("n", 5):
        pyro.sample("z", dist.Normal(s / 6, 0.9))


@one_by_one
def test_a_sum_over_the_plate_is_right():
    s = torch.tensor(3.0)
    estimate = weighting(500).estimate(summed, summed_guide, s)
    assert_is(estimate, dist.Normal(0.0, 6**0.5).log_prob(s))


def test_annealing_refuses_what_it_would_mix_up():
    annealing = evidence.AnnealedImportance(10, 10, progress=False)
    with (
        pytest.warns(UserWarning, match="one by one"),
        pytest.raises(ValueError, match="mixes them up"),
    ):
        annealing.estimate(indexed, indexed_guide, XS)


@one_by_one
def test_nested_samples_are_shared_one_by_one():
    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("n", 5):
            z = pyro.sample("z", dist.Normal(w[0] * XS, 0.3))
            pyro.sample("y", dist.Normal(z, 0.4), obs=y)

    def guide(y):
        w = pyro.sample("w", dist.Normal(torch.full((1,), 0.9), 0.7).to_event(1))
        with pyro.plate("n", 5):
            pyro.sample("z", dist.Normal(0.64 * w[0] * XS + 0.36 * y, 0.26))

    estimate = weighting(60, num_local_samples=5).estimate(model, guide, XS)
    assert_is(estimate, slope_evidence(0.5))


def test_dropout_and_batch_norm_are_at_rest():
    net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))

    def model(y):
        with pyro.plate("n", 5):
            z = pyro.sample("z", dist.Normal(torch.zeros(5, 1), 1.0).to_event(1))
            net(torch.zeros(2, 1))
            pyro.sample("y", dist.Normal(z[..., 0], 0.5), obs=y)

    def guide(y):
        with pyro.plate("n", 5):
            pyro.sample("z", dist.Normal(0.8 * y[:, None], 0.5).to_event(1))

    before = net[1].running_mean.clone()
    weighting(20).estimate(model, guide, XS)
    assert torch.equal(net[1].running_mean, before) and net[1].training


def walk(x):
    with pyro.plate("t", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.cumsum(-1), 0.5), obs=x)


def swapped(x):
    with pyro.plate("t", 5):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + z[..., [1, 0, 3, 2, 4]], 0.5), obs=x)


def local_guide(x):
    with pyro.plate("t", 5):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


MATRICES = {
    walk: torch.ones(5, 5, dtype=torch.float64).tril(),
    swapped: (torch.eye(5) + torch.eye(5)[[1, 0, 3, 2, 4]]).double(),
}


@pytest.mark.parametrize("model", MATRICES)
def test_data_that_depend_on_one_anothers_latents_have_one_weight(model):
    matrix = MATRICES[model]
    covariance = matrix @ matrix.T + 0.25 * torch.eye(5)
    exact = dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(XS)
    estimate = weighting(40_000).estimate(model, local_guide, XS)
    assert estimate.per_datum is None
    assert "depends on the latents of another (z)" in estimate.why_no_datum
    assert_is(estimate, exact)
    annealed = evidence.AnnealedImportance(60, 60, progress=False)
    assert_is(annealed.estimate(model, local_guide, XS), exact)


def test_such_a_plate_cannot_be_named():
    with pytest.raises(UnsupportedSiteError, match="site 'z': the weight of a datum in plate 't'"):
        weighting(plate="t").estimate(walk, local_guide, XS)


DATA = torch.tensor([0.0, 2.0, 2.1, 1.9, -0.3, 2.2], dtype=torch.float64)


def switched(size):
    c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    with pyro.plate("data", 6, subsample_size=size) as indices:
        z = pyro.sample("z", dist.Normal(2 * c, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[indices])


def switched_guide(size):
    with pyro.plate("data", 6, subsample_size=size) as indices:
        pyro.sample("z", dist.Normal(DATA[indices], 1.0))


def switched_data(size):
    c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
    with pyro.plate("data", 6, subsample_size=size) as indices:
        pyro.sample("x", dist.Normal(2 * c, 2**0.5), obs=DATA[indices])


def switched_evidence():
    each = torch.stack([dist.Normal(2.0 * c, 2**0.5).log_prob(DATA).sum() for c in (0, 1)])
    return (each + torch.tensor([0.7, 0.3]).log()).logsumexp(0)


def test_a_latent_that_the_model_sums_out_over_all_data():
    assert_is(weighting(20_000).estimate(switched, switched_guide, 6), switched_evidence())
    exact = evidence.Enumeration().estimate(switched_data, None, 6)
    assert torch.isclose(exact.value, switched_evidence())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("model", "guide", "estimator"),
    [
        (switched, switched_guide, weighting()),
        (switched, switched_guide, evidence.AnnealedImportance(10, 10, progress=False)),
        (switched_data, None, evidence.Enumeration()),
        (switched_data, lambda size: None, weighting()),
    ],
)
def test_minibatches_of_what_it_ties_together_are_refused(model, guide, estimator, size):
    with pytest.raises(UnsupportedSiteError, match=r"site 'c': it ties the data of plate 'data'"):
        estimator.estimate(model, guide, size)


def test_the_prior_of_what_the_model_sums_out_is_refused():
    annealing = evidence.AnnealedImportance(100, 60, start="prior", progress=False)
    with pytest.raises(UnsupportedSiteError, match="site 'c': the model sums it out"):
        annealing.estimate(switched, None, 6)


def half(x):
    with pyro.plate("n", 3):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", torch.where(z > 0, 0.0, -math.inf))


def half_guide(x):
    with pyro.plate("n", 3):
        pyro.sample("z", dist.Normal(0.5, 1.0))


def test_an_elbo_of_minus_infinity_says_why():
    gap = diagnostics.evidence_gap(half, half_guide, None, progress=False)
    assert gap.elbo.value == -math.inf
    assert r"density 0 in the model, at the sites ['f']" in str(gap)
    report = diagnostics.guide_report(half, half_guide, None, progress=False)
    (finding,) = [found for found in report.findings if found.what.startswith("gap")]
    assert "density 0 in the model" in finding.advice


@pytest.mark.parametrize("count", [2, 10, 24])
def test_too_few_samples_are_not_reliable(count):
    def narrow(x):
        with pyro.plate("n", 5):
            pyro.sample("z", dist.Normal(x, 0.01))

    def model(x):
        with pyro.plate("n", 5):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.1), obs=x)

    assert not weighting(count).estimate(model, narrow, XS).reliable


def test_what_is_no_program_is_refused():
    with pytest.raises(TypeError, match="the guide must be a Pyro program, not None"):
        weighting().estimate(indexed, None, XS)


def test_minibatches_that_begin_alike_are_gone_through():
    labels = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0])

    def model(size):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", 6, subsample_size=size) as indices:
            pyro.sample("x", dist.Bernoulli(logits=mu), obs=labels[indices])

    def guide(size):
        pyro.sample("mu", dist.Normal(-0.4, 0.7))

    whole, parts = (weighting(4000).estimate(model, guide, size) for size in (6, 2))
    error = torch.hypot(whole.standard_error, parts.standard_error)
    assert (whole.value - parts.value).abs() < 6 * error

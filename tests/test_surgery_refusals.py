"""What cannot be taken apart is refused, by name."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from per_datum import THRESHOLD, auto_program, program
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoNormal,
)
from support import assert_close

from pyro_elbo import NonFiniteError, UnsupportedSiteError
from pyro_elbo.diagnostics import elbo_surgery, gradient_signal, posterior_collapse
from pyro_elbo.reference import LinearVAE

LOC = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).reshape(4, 2)
CORRELATED = torch.tensor([[1.0, 0.3], [0.3, 1.0]], dtype=torch.float64)


def flow():
    base = dist.Normal(LOC, 1.0).to_event(1)
    return dist.TransformedDistribution(base, [affine_autoregressive(2)])


@pytest.mark.parametrize(
    ("prior", "posterior", "why"),
    [
        (None, lambda: dist.MultivariateNormal(LOC, CORRELATED), "guide, MultivariateNormal"),
        (
            lambda: dist.MultivariateNormal(torch.zeros(2), CORRELATED),
            lambda: dist.Normal(LOC, 1.0).to_event(1),
            "prior, MultivariateNormal",
        ),
        (None, flow, "guide, TransformedDistribution"),
        (
            lambda: dist.Normal(LOC, 1.0).to_event(1),
            lambda: dist.Normal(LOC, 1.0).to_event(1),
            "prior differs between data",
        ),
    ],
    ids=["correlated guide", "correlated prior", "flow", "prior of the data"],
)
def test_what_does_not_factorise_is_refused(prior, posterior, why):
    prior = prior or (lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pytest.raises(UnsupportedSiteError, match=f"'z'.*{why}.*; use "):
        elbo_surgery(*program(prior, posterior, 4))


@pytest.mark.parametrize("autoguide", [AutoDiagonalNormal, AutoDelta])
def test_guides_without_a_density_of_each_datum_are_refused(autoguide):
    with pytest.raises(UnsupportedSiteError, match="AutoNormal"):
        elbo_surgery(*auto_program(autoguide))


def test_a_transformed_auxiliary_site_is_refused():
    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(4))

    with pytest.raises(UnsupportedSiteError, match="'z'.*auxiliary.*LogNormal"):
        elbo_surgery(model, AutoNormal(model))


def two_latents(depends, observe):
    """Two latents, of which the second may depend on the first."""

    def run():
        with pyro.plate("data", 4):
            first = pyro.sample("first", dist.Normal(torch.arange(4.0) * (not observe), 1.0))
            pyro.sample("second", dist.Normal(first if depends else torch.zeros(4), 1.0))
            if observe:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(4))

    return run


@pytest.mark.parametrize(("in_model", "in_guide"), [(True, False), (False, True)])
def test_dependent_latents_are_refused(in_model, in_guide):
    where = "model" if in_model else "guide"
    with pytest.raises(UnsupportedSiteError, match=f"'second'.*in the {where}.*'first'"):
        elbo_surgery(two_latents(in_model, True), two_latents(in_guide, False))


def test_independent_latents_of_one_plate_are_units_of_one_whole():
    report = elbo_surgery(two_latents(False, True), two_latents(False, False), num_samples=1000)
    assert report.units == ("first", "second")
    assert_close(report.total_correlation, 0.0, scale=10.0)
    assert (report.prior_kl - 14 / 8).abs() < THRESHOLD * report.standard_error["prior_kl"]


def test_a_prior_that_hangs_on_a_global_or_a_marginalised_latent_is_refused():
    def model(observe):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(4))

    def guide(observe):
        pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.arange(4.0), 1.0))

    with pytest.raises(UnsupportedSiteError, match="'z'.*model.*'mean'"):
        elbo_surgery(model, guide, True)

    def mixture():
        with pyro.plate("data", 4):
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(c, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(4))

    alone = program(lambda: None, lambda: dist.Normal(torch.arange(4.0), 1.0), 4)[1]
    with pytest.raises(UnsupportedSiteError, match="'z'.*'c'"):
        elbo_surgery(mixture, alone)


def test_a_program_that_cannot_be_tracked_is_refused():
    def both(observe):
        with pyro.plate("data", 4):
            first = pyro.sample("first", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("second", dist.Normal(first[0].item(), 1.0))
            if observe:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(4))

    with pytest.raises(UnsupportedSiteError, match="could not be tracked.*'second'"):
        elbo_surgery(lambda: both(True), lambda: both(False))


@pytest.mark.parametrize("estimator", ["exact", "stratified"])
def test_a_subsampled_plate_is_refused(estimator):
    problem = LinearVAE(num_data=20, subsample_size=10)
    keywords = {} if estimator == "exact" else {"estimator": estimator, "batch_size": 5}
    with pytest.raises(UnsupportedSiteError, match=r"'z'.*subsampled \(10 of 20\).*in full"):
        elbo_surgery(problem.model, problem.guide, problem.data, **keywords)


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"estimator": "mws"}, "estimator must be one of"),
        ({"estimator": "weighted"}, "batch_size is None"),
        ({"batch_size": 4}, "no minibatches"),
        ({"estimator": "stratified", "batch_size": 1}, "batch_size must be an integer >= 2"),
        ({"estimator": "stratified", "batch_size": 21}, "only 20 data"),
        ({"num_samples": 0}, "num_samples must be an integer >= 1"),
        ({"plate": "nope"}, "'nope'.*'data'"),
    ],
)
def test_bad_arguments(keywords, what):
    problem = LinearVAE(num_data=20)
    with pytest.raises(ValueError, match=what):
        elbo_surgery(problem.model, problem.guide, problem.data, **keywords)


@pytest.mark.parametrize(
    ("loc", "why"), [(math.nan, "is nan in 2 of 4"), (math.inf, "is infinite in 2 of 4")]
)
@pytest.mark.parametrize("diagnostic", [elbo_surgery, posterior_collapse])
def test_a_kl_that_is_not_finite_is_named(diagnostic, loc, why):
    broken = torch.tensor([[0.0, 1.0], [loc, 0.0], [0.5, 0.5], [0.0, loc]])
    programs = program(
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        lambda: dist.Normal(broken, 1.0, validate_args=False).to_event(1),
        4,
    )
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=f"'z': its KL.*{why}"):
        diagnostic(*programs, progress=False)


def test_a_gradient_that_is_not_finite_is_named():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(math.nan))

    def guide():
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="'loc'.*site 'x'"):
        gradient_signal(model, guide)

"""ELBO surgery: the parts of the prior's KL against quadrature and sums."""

import math
import resource

import pyro
import pyro.distributions as dist
import pytest
import torch
from per_datum import (
    LOCS,
    NUM_DATA,
    SCALE,
    THRESHOLD,
    assert_right,
    auto_program,
    gaussians,
    normals,
    pair_of_units,
    parts_of,
    program,
)
from pyro import poutine
from pyro.infer.autoguide import (
    AutoNormal,
    AutoNormalMessenger,
)
from support import assert_close, assert_same_mean

from pyro_elbo.diagnostics import elbo_surgery
from pyro_elbo.reference import LinearVAE


def test_gaussians_of_known_parts():
    loc, exact = gaussians()
    model, guide = normals(loc)
    report = elbo_surgery(model, guide)
    assert (exact > 0.1).all()
    assert_right(report, exact)
    kl = ((loc**2 + SCALE**2 - 1) / 2 - math.log(SCALE)).sum(-1).mean()
    assert_close(exact.sum(), kl, ulps=2**20)
    assert (report.prior_kl - kl).abs() < THRESHOLD * report.standard_error["prior_kl"]
    assert_close(parts_of(report)[0].sum(), report.prior_kl, scale=10.0)
    assert report.num_samples == 3 and report.num_data == 729 and len(report.units) == 6


def test_the_standard_errors_are_those_of_repeated_runs():
    values = torch.tensor([-1.0, 0.2, 2.0])
    model, guide = normals(values.unsqueeze(-1).expand(3, 2))
    exact = pair_of_units(values)
    runs = [parts_of(elbo_surgery(model, guide, num_samples=20)) for _ in range(40)]
    means, errors = (torch.stack(each) for each in zip(*runs, strict=True))
    assert_same_mean((means - exact) ** 2, errors**2)


def test_one_draw_of_each_datum_has_an_error_that_is_not_too_small():
    values = torch.linspace(-2, 2, 50)
    model, guide = normals(values.unsqueeze(-1).expand(50, 2))
    runs = [parts_of(elbo_surgery(model, guide, num_samples=1)) for _ in range(40)]
    means, errors = (torch.stack(each) for each in zip(*runs, strict=True))
    assert (errors.mean(0) > means.std(0) / 2).all()
    one = elbo_surgery(*normals(torch.ones(1, 2)), num_samples=1)
    assert one.standard_error["prior_kl"].isnan() and one.mutual_information == 0


def test_discrete_latents_by_sums_over_all_values():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.5, 2.0], [0.0, 0.0, 3.0]])
    chances = torch.tensor([0.9, 0.6, 0.3, 0.1])

    def model():
        with pyro.plate("data", 4):
            pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
            pyro.sample("b", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(4))

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("b", dist.Bernoulli(chances))

    both = torch.stack([1 - chances, chances], -1)
    given = logits.softmax(-1).unsqueeze(-1) * both.unsqueeze(1)
    joint = given.mean(0)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    prior = torch.tensor([0.5, 0.3, 0.2]).unsqueeze(-1) * torch.tensor([0.6, 0.4])
    exact = torch.stack(
        [
            (given * (given / joint).log()).sum() / 4,
            (joint * (joint / apart).log()).sum(),
            (joint * (apart / prior).log()).sum(),
        ]
    )
    report = elbo_surgery(model, guide, num_samples=1000)
    assert report.units == ("c", "b")
    assert_right(report, exact)


def test_supports_that_differ_between_data():
    """Uniforms on [n, n + 1.5]: each overlaps the next by a third of it."""
    loc = torch.arange(3.0).unsqueeze(-1)
    model, guide = program(
        lambda: dist.Normal(torch.zeros(1), 2.0).to_event(1),
        lambda: dist.Uniform(loc, loc + 1.5).to_event(1),
        3,
    )
    report = elbo_surgery(model, guide, num_samples=1000)
    alone = 2.5 / 4.5
    information = alone * math.log(3) + (1 - alone) * math.log(1.5)
    assert (report.mutual_information - information).abs() < THRESHOLD * parts_of(report)[1][0]
    assert_close(report.total_correlation, 0.0, scale=1.0)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoNormalMessenger])
def test_auto_normal_on_the_reals(autoguide):
    model, guide = auto_program(autoguide)
    guide.locs.z = LOCS.unsqueeze(-1).repeat(1, 2)
    guide.scales.z = torch.full((NUM_DATA, 2), SCALE)
    assert_right(elbo_surgery(model, guide), pair_of_units(LOCS))


def test_a_diagonal_multivariate_normal_is_its_univariate_ones():
    values = torch.linspace(-2.0, 3.0, 5)
    loc = values.unsqueeze(-1).repeat(1, 2)
    model, guide = program(
        lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda: dist.MultivariateNormal(loc, scale_tril=SCALE * torch.eye(2)),
        5,
    )
    report = elbo_surgery(model, guide)
    assert report.units == ("z[0]", "z[1]")
    assert_right(report, pair_of_units(values))


def test_scales_and_the_store_are_left_alone():
    problem = LinearVAE(num_data=40)
    before = {name: value.clone() for name, value in problem.parameters().items()}
    scaled = [poutine.scale(side, 0.1) for side in (problem.model, problem.guide)]
    report = elbo_surgery(*scaled, problem.data)
    kl = problem.exact_terms().kl / 40
    assert (report.prior_kl - kl).abs() < THRESHOLD * report.standard_error["prior_kl"]
    assert all(torch.equal(before[name], value) for name, value in problem.parameters().items())


def test_a_report_reads_well():
    problem = LinearVAE(num_data=40)
    text = str(elbo_surgery(problem.model, problem.guide, problem.data))
    assert "mutual information" in text and "exact aggregate posterior" in text
    keywords = {"estimator": "weighted", "batch_size": 10}
    text = str(elbo_surgery(problem.model, problem.guide, problem.data, **keywords))
    assert "weighted in minibatches of 10: biased" in text


@pytest.mark.slow
def test_ten_thousand_data_fit_in_memory():
    """All pairs of data at once would take 1.6 GB for each of several tensors."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model, guide = normals(torch.randn(10_000, 2))
    report = elbo_surgery(model, guide)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400_000, f"{grown} KB"
    assert 0 < report.mutual_information < math.log(10_000)

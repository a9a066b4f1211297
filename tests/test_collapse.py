"""Posterior collapse: verdicts and numbers against what is known in closed form."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from per_datum import (
    LOCS,
    NUM_DATA,
    THRESHOLD,
    exact_kl,
    mixture_information,
    normal_program,
    program,
    two_units,
)
from pyro import poutine
from support import assert_close, assert_mean

from pyro_elbo.diagnostics import aggregate, posterior_collapse
from pyro_elbo.diagnostics.units import activity
from pyro_elbo.reference import LinearVAE

PHASES = {"all above the data": 0, "between the first two": 1, "between the next": 2, "below": 3}
REPEATS = 50


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough for the mutual information where its error is looked at."""
    monkeypatch.setattr(aggregate, "DRAWS", 200)


def linear_vae(active):
    """A linear VAE at its maximum of the likelihood, with that many eigenvalues above the noise."""
    problem = LinearVAE(num_data=100, num_features=5, num_units=3)
    eigenvalues = torch.linalg.eigvalsh(problem.data.T.cov(correction=0)).flip(0)
    steps = torch.cat([4 * eigenvalues[:1], eigenvalues])
    problem.fit_maximum_likelihood(noise=float((steps[active] * steps[active + 1]) ** 0.25))
    problem.set_guide_to_posterior()
    return problem, eigenvalues


def report_of(problem, **keywords):
    return posterior_collapse(problem.model, problem.guide, *problem.args, **keywords)


@pytest.mark.parametrize("active", PHASES.values(), ids=PHASES)
def test_the_linear_vae_at_each_phase(active):
    problem, eigenvalues = linear_vae(active)
    report = report_of(problem)
    noise = problem.model.noise.detach() ** 2
    signal = (1 - noise / eigenvalues[:3]).clamp(min=0) * 100 / 99
    assert int(report.active.sum()) == active == int((eigenvalues > noise).sum())
    assert_close(report.activity, signal, scale=1.0, ulps=4096)
    assert_close(report.kl.sum(), problem.exact_terms().kl / 100, scale=1.0, ulps=4096)
    assert report.dead_share == pytest.approx(1 - active / 3)
    words = {0: "All 3 units are dead", 1: "2 of 3", 2: "1 of 3", 3: "No unit is dead"}
    dead = [f"z[{i}]" for i in range(3) if not report.active[i]]
    assert report.verdict.startswith(words[active])
    assert active in (0, 3) or all(name in report.verdict for name in dead)
    assert (report.no_mutual_information is None) and report.mutual_information <= math.log(100)
    if active == 0:
        assert_close(report.mutual_information, 0.0, scale=1.0, ulps=4096)
    else:
        assert report.mutual_information > 5 * report.mutual_information_standard_error


def test_a_guide_that_differs_from_the_optimum_is_judged_as_it_is():
    problem = LinearVAE(num_data=30)
    loc, scale = problem.guide.encode(problem.data).detach(), problem.guide.scale.detach()
    report = report_of(problem)
    assert_close(report.kl, exact_kl(loc, scale), scale=1.0)
    assert_close(report.activity, loc.var(0), scale=1.0)
    assert_close(report.kl_standard_error, torch.zeros(2), scale=1.0)
    assert report.units == ("z[0]", "z[1]") and report.num_data == report.full_size == 30


def test_the_threshold_decides():
    model, guide = normal_program()
    report = posterior_collapse(model, guide, threshold=float(LOCS.var()) + 0.1)
    assert report.active.tolist() == [False, False]
    report = posterior_collapse(model, guide, threshold=float(LOCS.var()) - 0.1)
    assert report.active.tolist() == [True, False]


def test_the_mutual_information_is_that_of_quadrature():
    model, guide = normal_program()
    exact = mixture_information(LOCS, torch.tensor(0.5))
    reports = [posterior_collapse(model, guide, num_samples=3) for _ in range(REPEATS)]
    values = torch.stack([report.mutual_information for report in reports])
    assert_mean(values, exact, "I(x; z)")
    errors = torch.stack([report.mutual_information_standard_error for report in reports])
    assert_mean(((values - exact) / errors) ** 2, torch.tensor(1.0), "its standard error")


def test_scales_are_left_out():
    model, guide = normal_program()
    loc, scale = two_units()
    scaled = posterior_collapse(poutine.scale(model, 0.1), poutine.scale(guide, 0.1))
    assert_close(scaled.kl, exact_kl(loc, scale), scale=1.0)


class Opaque(dist.Normal):
    """A normal without a mean, an entropy or a KL in closed form."""

    @property
    def mean(self):
        raise NotImplementedError

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(Opaque, _instance))


def opaque_program():
    loc, scale = two_units()
    return program(
        lambda: dist.StudentT(9.0, torch.zeros(2), 1.0).to_event(1),
        lambda: Opaque(loc, scale).to_event(1),
        NUM_DATA,
    )


def test_sampled_means_and_kls_are_unbiased_and_know_their_errors():
    model, guide = opaque_program()
    loc, scale = two_units()
    grid = torch.linspace(-10, 10, 20_001)
    log_q = dist.Normal(loc.unsqueeze(-1), scale.unsqueeze(-1)).log_prob(grid)
    log_p = dist.StudentT(9.0, 0.0, 1.0).log_prob(grid)
    kl = torch.trapezoid(log_q.exp() * (log_q - log_p), grid).mean(0)
    reports = [posterior_collapse(model, guide, num_samples=5) for _ in range(REPEATS)]
    kls = torch.stack([report.kl for report in reports])
    activities = torch.stack([report.activity for report in reports])
    assert_mean(kls, kl, "KL")
    assert_mean(activities, loc.var(0), "activity")
    variance = (
        torch.trapezoid(log_q.exp() * (log_q - log_p) ** 2, grid)
        - torch.trapezoid(log_q.exp() * (log_q - log_p), grid) ** 2
    )
    error = posterior_collapse(model, guide, num_samples=200).kl_standard_error
    ratio = error**2 / (variance.mean(0) / NUM_DATA / 200)
    assert ((ratio - 1).abs() < THRESHOLD * (2 / 199) ** 0.5).all()


def test_a_unit_near_the_threshold_is_said_to_be():
    """The mean of 5 samples varies by 0.13 over data where the posterior mean does not."""
    model, guide = opaque_program()
    near = [posterior_collapse(model, guide, num_samples=5, threshold=0.05) for _ in range(5)]
    assert any("Too close to the threshold to tell: z[1]" in report.verdict for report in near)
    far = posterior_collapse(model, guide, num_samples=5, threshold=1.0)
    assert "Too close" not in far.verdict and far.active.tolist() == [True, False]


def test_the_error_of_an_activity_is_a_jackknife():
    """Whose mean square is the variance of what it judges, or somewhat more (Efron & Stein)."""
    means = LOCS.reshape(1, -1, 1, 1) * 0.3 + torch.randn(4000, 8, NUM_DATA, 1, 1)
    values, errors = (torch.stack(each) for each in zip(*map(activity, means), strict=True))
    assert_mean(values, (0.3 * LOCS).var().reshape(1), "activity")
    assert 0.9 * values.var() < (errors**2).mean() < 1.5 * values.var()


def test_nothing_is_changed():
    problem, _ = linear_vae(1)
    before = {name: value.clone() for name, value in problem.parameters().items()}
    report_of(problem)
    problem.model.train()
    names = set(pyro.get_param_store())
    report_of(problem)
    assert all(torch.equal(before[name], value) for name, value in problem.parameters().items())
    assert all(value.grad is None for value in problem.parameters().values())
    assert problem.model.training and set(pyro.get_param_store()) == names


def test_bad_arguments():
    model, guide = normal_program()
    with pytest.raises(ValueError, match="num_samples.*>= 3"):
        posterior_collapse(model, guide, num_samples=1)
    with pytest.raises(ValueError, match="threshold"):
        posterior_collapse(model, guide, threshold=math.nan)
    with pytest.raises(ValueError, match="site='x'.*'z'"):
        posterior_collapse(model, guide, site="x")
    with pytest.raises(ValueError, match="not sampled by the guide"):
        posterior_collapse(model, lambda: None)


def test_one_datum_has_no_variance():
    problem = LinearVAE(num_data=1)
    with pytest.raises(ValueError, match="'data' has one datum"):
        report_of(problem)


def test_a_report_reads_well():
    problem, _ = linear_vae(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = str(report_of(problem))
    assert "z[2]" in text and "dead" in text and "I(x; z):" in text and "at most log 100" in text
    assert max(map(len, text.splitlines()[:7])) < 90


@pytest.mark.slow
@pytest.mark.parametrize("active", [0, 1, 3])
def test_a_trained_linear_vae_reaches_its_phase(active):
    """Trained by gradient at a fixed noise, from away from the optimum."""
    problem, _ = linear_vae(active)
    noise = problem.model.noise.detach().clone()
    torch.manual_seed(0)
    for name, parameter in problem.parameters().items():
        if "noise" not in name:
            parameter.data = 0.3 * torch.randn(parameter.shape)
    trained = [value for name, value in problem.parameters().items() if "noise" not in name]
    optimiser = torch.optim.Adam(trained, lr=0.02)
    for _ in range(4000):
        optimiser.zero_grad()
        (-problem.exact_terms().elbo).backward()
        optimiser.step()
    assert_close(problem.model.noise, noise)
    assert int(report_of(problem).active.sum()) == active

"""The reference problems' exact answers against brute force."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy.integrate import quad
from support import EPS, LOSSES, assert_close, assert_mean

from pyro_elbo import UnsupportedSiteError
from pyro_elbo.reference import (
    BetaBernoulli,
    ConjugateNormal,
    GaussianMixture,
    HierarchicalNormal,
    LinearVAE,
)

PROBLEMS = [ConjugateNormal, LinearVAE, BetaBernoulli, GaussianMixture, HierarchicalNormal]

problems = pytest.mark.parametrize("cls", PROBLEMS, ids=lambda cls: cls.__name__)


def magnitude(problem):
    terms = problem.exact_terms()
    return max(terms.reconstruction.abs(), terms.entropy.abs(), problem.log_evidence().abs())


@problems
def test_the_gap_is_the_posterior_kl(cls):
    problem = cls()
    gap = problem.exact_terms().gap
    assert_close(gap, problem.posterior_kl(), magnitude(problem), ulps=256)
    assert gap > 0.1


@problems
def test_the_gap_is_zero_at_the_posterior(cls):
    problem = cls()
    if cls is LinearVAE:
        with pytest.raises(ValueError, match="orthogonal"):
            problem.set_guide_to_posterior()
        problem.fit_maximum_likelihood()
    problem.set_guide_to_posterior()
    assert_close(problem.exact_terms().gap, torch.zeros(()), magnitude(problem), ulps=256)
    gradients = problem.exact_gradients()
    for name, gradient in gradients.items():
        if name.startswith("guide."):
            assert (gradient.abs() <= 1e4 * EPS * magnitude(problem)).all(), name


@problems
def test_terms_are_the_mean_of_samples(cls):
    problem = cls()
    elbo = Trace_ELBO(num_particles=50, vectorize_particles=True)
    losses = [elbo.loss(problem.model, problem.guide, *problem.args) for _ in range(200)]
    assert_mean(-torch.tensor(losses), problem.exact_terms().elbo.detach())
    terms = problem.exact_terms()
    assert_close(terms.kl, sum(site.kl for site in problem.exact_sites().values()), terms.entropy)
    assert_close(terms.elbo, terms.reconstruction - terms.kl, magnitude(problem))


@problems
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_gradients_are_finite_differences(cls, beta):
    problem = cls()
    step = EPS ** (1 / 3)
    for name, gradient in problem.exact_gradients(beta).items():
        parameter = problem.parameters()[name]
        direction = torch.cos(torch.arange(parameter.numel()) + 1.0).reshape(parameter.shape)
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter.add_(sign * step * direction)
                values.append(problem.exact_objective(beta))
        slope = (values[0] - values[1]) / (2 * step)
        error = 1e3 * step**2 * max(1.0, values[0].abs())
        assert (slope - (gradient * direction).sum()).abs() < error, name


def normal_log_pdf(x, loc, scale):
    return -0.5 * math.log(2 * math.pi) - math.log(scale) - 0.5 * ((x - loc) / scale) ** 2


def test_conjugate_normal_evidence_by_quadrature():
    problem = ConjugateNormal()
    model = problem.model
    m0, s0, noise = (float(v) for v in (model.prior_loc, model.prior_scale, model.noise))
    total = 0.0
    for x in problem.data.tolist():

        def joint(z, x=x):
            return math.exp(normal_log_pdf(z, m0, s0) + normal_log_pdf(x, z, noise))

        total += math.log(quad(joint, -20, 20, epsabs=0, epsrel=1e-12, limit=200)[0])
    assert float(problem.log_evidence()) == pytest.approx(total, rel=1e-11)


def test_beta_bernoulli_by_quadrature():
    problem = BetaBernoulli()
    a, b = problem.model.prior.tolist()
    heads, tosses = float(problem.data.sum()), len(problem.data)

    def joint(p):
        prior = p ** (a - 1) * (1 - p) ** (b - 1) * math.gamma(a + b)
        likelihood = p**heads * (1 - p) ** (tosses - heads)
        return prior / math.gamma(a) / math.gamma(b) * likelihood

    evidence = math.log(quad(joint, 0, 1, epsrel=1e-12)[0])
    assert float(problem.log_evidence()) == pytest.approx(evidence, rel=1e-10)
    guide = dist.Beta(*problem.guide.concentration.detach())

    def expected(f):
        def density(p):
            p = torch.tensor(p)
            return float(guide.log_prob(p).exp() * f(p))

        return quad(density, 0, 1, epsrel=1e-10)[0]

    site = problem.exact_sites()["p"]
    log_prior = expected(dist.Beta(a, b).log_prob)
    assert float(site.expected_log_prior.detach()) == pytest.approx(log_prior, rel=1e-8)
    assert float(site.expected_log_guide.detach()) == pytest.approx(
        expected(guide.log_prob), rel=1e-8
    )


def test_gaussian_mixture_by_enumeration():
    problem = GaussianMixture(num_data=4)
    model, guide = problem.model, problem.guide
    q = torch.softmax(guide.logits, -1)
    joints, elbo = [], 0.0
    for assignment in itertools.product(range(3), repeat=4):
        c = torch.tensor(assignment)
        log_joint = model.weights[c].log().sum()
        log_joint = log_joint + dist.Normal(model.locs[c], model.noise).log_prob(problem.data).sum()
        log_q = q[torch.arange(4), c].log().sum()
        elbo = elbo + log_q.exp() * (log_joint - log_q)
        joints.append(log_joint)
    assert_close(problem.log_evidence(), torch.stack(joints).logsumexp(0))
    assert_close(problem.exact_terms().elbo, elbo, magnitude(problem))


def test_hierarchical_evidence_is_posterior_consistent():
    """log p(x) = log p(x, z) - log p(z | x) at any z."""
    problem = HierarchicalNormal()
    model = problem.model
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(5, generator=generator)
        joint = dist.Normal(model.prior_loc, model.prior_scale).log_prob(z[0])
        joint = joint + dist.Normal(z[0], model.spread).log_prob(z[1:]).sum()
        joint = joint + dist.Normal(z[1:], model.noise).log_prob(problem.data).sum()
        evidence = joint - problem.posterior().log_prob(z)
        assert_close(evidence, problem.log_evidence(), joint, ulps=256)


def test_linear_vae_evidence_is_posterior_consistent():
    problem = LinearVAE()
    model = problem.model
    z = torch.randn(8, 2)
    joint = dist.Normal(0.0, 1.0).log_prob(z).sum()
    loc = z @ model.weight.T + model.bias
    joint = joint + dist.Normal(loc, model.noise).log_prob(problem.data).sum()
    evidence = joint - problem.posterior().log_prob(z).sum()
    assert_close(evidence, problem.log_evidence(), joint, ulps=256)


def test_linear_vae_collapse_is_where_the_eigenvalues_say():
    problem = LinearVAE(num_data=50)
    problem.fit_maximum_likelihood()
    problem.set_guide_to_posterior()
    for name, gradient in problem.exact_gradients().items():
        assert gradient.abs().max() < 1e5 * EPS * magnitude(problem), name
    covariance = problem.data.T.cov(correction=0)
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    noise = float((eigenvalues[0] * eigenvalues[1]) ** 0.25)
    problem.fit_maximum_likelihood(noise=noise)
    assert problem.active_units().tolist() == [True, False]
    problem.set_guide_to_posterior()
    scale = problem.guide.scale.detach()
    assert_close(scale[1], torch.ones(()))
    assert scale[0] < 0.99
    assert_close(problem.guide.encode(problem.data)[:, 1], torch.zeros(50), 1.0)


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("enumerate", [None, "parallel", "sequential"])
def test_the_mixture_is_refused_until_its_gradients_are_there(cls, enumerate):
    problem = GaussianMixture(enumerate=enumerate)
    with pytest.raises(UnsupportedSiteError, match="'c'"):
        cls().loss(problem.model, problem.guide, *problem.args)


def test_problems_do_not_share_parameters():
    for cls in PROBLEMS:
        problem = cls()
        Trace_ELBO().loss(problem.model, problem.guide, *problem.args)
    names = list(pyro.get_param_store().keys())
    expected = sum(len(cls().parameters()) for cls in PROBLEMS)
    assert len(names) == len(set(names)) == expected

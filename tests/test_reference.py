"""The reference problems' exact answers against brute force."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from scipy.integrate import quad
from support import EPS, assert_close, assert_mean, evaluate

from pyro_elbo.reference import (
    ALL,
    BetaBernoulli,
    ConjugateNormal,
    GaussianMixture,
    HierarchicalNormal,
    LinearVAE,
)

problems = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
subsampling = pytest.mark.parametrize("subsample_size", [None, 2], ids=["full", "subsampled"])


def magnitude(problem):
    terms = problem.exact_terms()
    return max(terms.reconstruction.abs(), terms.entropy.abs(), problem.log_evidence().abs())


@problems
def test_the_gap_is_the_posterior_kl(cls):
    problem = cls()
    gap = problem.exact_terms().gap
    assert_close(gap, problem.posterior_kl(), magnitude(problem), ulps=256)


@problems
def test_the_guide_starts_away_from_prior_and_posterior(cls):
    problem = cls()
    assert problem.posterior_kl() > 0.1
    for name, site in problem.exact_sites().items():
        assert site.kl > 0.1, name


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
def test_a_guide_at_the_posterior_can_be_trained(cls):
    problem = cls()
    if cls is LinearVAE:
        problem.fit_maximum_likelihood()
    before = problem.parameters()
    problem.set_guide_to_posterior()
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(*problem.args)
    svi.step(*problem.args)
    for name, parameter in problem.parameters().items():
        assert parameter is before[name], name
        assert parameter.isfinite().all(), name


def sampled_terms(problem, num_particles):
    """Each site's log-density by Pyro's own traces, averaged over a particle plate."""
    with pyro.plate("particles", num_particles, dim=-3):
        guide = poutine.trace(problem.guide).get_trace(*problem.args)
        model = poutine.trace(poutine.replay(problem.model, guide)).get_trace(*problem.args)
    guide.compute_log_prob()
    model.compute_log_prob()
    sums = {"reconstruction": model.nodes["x"]["log_prob_sum"]}
    for name in problem.latents:
        sums[f"{name} log prior"] = model.nodes[name]["log_prob_sum"]
        sums[f"{name} log guide"] = guide.nodes[name]["log_prob_sum"]
    return {name: value.detach() / num_particles for name, value in sums.items()}


@problems
@subsampling
def test_each_expectation_is_the_mean_of_samples(cls, subsample_size):
    problem = cls(subsample_size=subsample_size)
    rows = [sampled_terms(problem, num_particles=50) for _ in range(200)]
    exact = {"reconstruction": problem.exact_reconstruction()}
    for name, site in problem.exact_sites().items():
        exact[f"{name} log prior"] = site.expected_log_prior
        exact[f"{name} log guide"] = site.expected_log_guide
    assert rows[0].keys() == exact.keys()
    for name, value in exact.items():
        assert_mean(torch.stack([row[name] for row in rows]), value.detach(), name)


def log_densities(problem, values):
    """Each site's scaled log-density on either side, with latents and plate indices given."""
    sides = {"model": problem.model, "guide": problem.guide}
    sums = {}
    for side, program in sides.items():
        trace = poutine.trace(poutine.condition(program, values)).get_trace(*problem.args)
        trace.compute_log_prob()
        for name in (*problem.latents, "x"):
            if name in trace.nodes:
                sums[f"{side}.{name}"] = trace.nodes[name]["log_prob_sum"].detach()
    return sums


@problems
def test_minibatches_average_to_the_full_data(cls):
    problem, minibatch = cls(), cls(subsample_size=2)
    plate = "groups" if cls is HierarchicalNormal else "data"
    num_data = problem.data.shape[1] if cls is HierarchicalNormal else len(problem.data)
    drawn = poutine.trace(minibatch.model).get_trace(*minibatch.args).nodes[plate]["value"]
    assert len(drawn) == 2
    nodes = poutine.trace(problem.guide).get_trace(*problem.args).nodes
    draws = {name: nodes[name]["value"].detach() for name in problem.latents}
    rows = []
    for subset in itertools.combinations(range(num_data), 2):
        indices = torch.tensor(subset)
        values = {name: draw[indices] if draw.dim() else draw for name, draw in draws.items()}
        rows.append(log_densities(minibatch, {plate: indices, **values}))
    full = log_densities(problem, draws)
    assert len(full) == 2 * len(problem.latents) + 1
    assert rows[0].keys() == full.keys()
    for name, total in full.items():
        values = torch.stack([row[name] for row in rows])
        assert_close(values.mean(), total, values.abs().max())


REPARAMETERISED = [cls for cls in ALL if cls is not GaussianMixture]
PYRO_LOSSES = [
    *itertools.product([Trace_ELBO], ALL),
    *itertools.product([TraceMeanField_ELBO], REPARAMETERISED),
]


@subsampling
@pytest.mark.parametrize(("loss_class", "cls"), PYRO_LOSSES, ids=lambda cls: cls.__name__)
def test_losses_of_pyro_have_the_exact_mean(loss_class, cls, subsample_size):
    problem = cls(subsample_size=subsample_size)
    elbo = loss_class(num_particles=50, vectorize_particles=True, max_plate_nesting=2)
    losses = [elbo.loss(problem.model, problem.guide, *problem.args) for _ in range(200)]
    assert_mean(-torch.tensor(losses), problem.exact_terms().elbo.detach())


@problems
def test_terms_add_up(cls):
    problem = cls()
    terms, sites = problem.exact_terms(), problem.exact_sites()
    scale = magnitude(problem)
    assert tuple(sites) == problem.latents
    assert_close(terms.kl, sum(site.kl for site in sites.values()), scale)
    assert_close(terms.elbo, terms.reconstruction - terms.kl, scale)
    assert_close(terms.elbo, terms.expected_log_joint + terms.entropy, scale)
    assert_close(terms.elbo, problem.exact_objective(), scale)
    weights = {name: 0.5 + position for position, name in enumerate(sites)}
    weighted = sum(weights[name] * site.kl for name, site in sites.items())
    assert_close(problem.exact_objective(weights), terms.reconstruction - weighted, scale)


def central_difference(problem, parameter, direction, beta, step):
    values = []
    with torch.no_grad():
        for move in (step, -2 * step):
            parameter.add_(move * direction)
            values.append(problem.exact_objective(beta))
        parameter.add_(step * direction)
    return (values[0] - values[1]) / (2 * step)


@problems
@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_gradients_are_finite_differences(cls, beta):
    """A difference's error is that of halving its step, and rounding over the step."""
    problem = cls()
    step = EPS ** (1 / 3)
    for name, gradient in problem.exact_gradients(beta).items():
        parameter = problem.parameters()[name]
        direction = torch.cos(torch.arange(parameter.numel()) + 1.0).reshape(parameter.shape)
        coarse = central_difference(problem, parameter, direction, beta, 2 * step)
        fine = central_difference(problem, parameter, direction, beta, step)
        rounding = 64 * EPS * beta * magnitude(problem) / step
        slope = (gradient * direction).sum()
        assert (fine - slope).abs() <= (coarse - fine).abs() + rounding, name


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


def test_linear_vae_maximum_likelihood_is_tipping_and_bishops():
    problem = LinearVAE(num_data=50)
    problem.fit_maximum_likelihood()
    eigenvalues = torch.linalg.eigvalsh(problem.data.T.cov(correction=0)).flip(0)
    log_det = eigenvalues[:2].log().sum() + 2 * eigenvalues[2:].mean().log()
    expected = -0.5 * 50 * (4 * math.log(2 * math.pi) + log_det + 4)
    assert_close(problem.log_evidence(), expected, ulps=256)


@pytest.mark.parametrize(
    ("sizes", "noise", "message"),
    [
        ({"num_features": 3, "num_units": 3}, None, "pass noise"),
        ({"num_data": 2}, None, "pass noise"),
        ({}, 0.0, "noise is 0.0"),
        ({}, -0.5, "noise is -0.5"),
        ({}, math.nan, "noise is nan"),
    ],
)
def test_linear_vae_refuses_a_likelihood_without_maximum(sizes, noise, message):
    problem = LinearVAE(**sizes)
    before = {name: p.detach().clone() for name, p in problem.parameters().items()}
    with pytest.raises(ValueError, match=message):
        problem.fit_maximum_likelihood(noise)
    for name, parameter in problem.parameters().items():
        assert torch.equal(parameter, before[name]), name


def test_linear_vae_with_a_unit_for_each_feature_needs_the_noise():
    problem = LinearVAE(num_features=3, num_units=3)
    problem.fit_maximum_likelihood(noise=0.4)
    problem.set_guide_to_posterior()
    assert_close(problem.exact_terms().gap, torch.zeros(()), magnitude(problem), ulps=256)


def test_linear_vae_refuses_more_units_than_features():
    with pytest.raises(ValueError, match="num_units is 3"):
        LinearVAE(num_features=2, num_units=3)


@pytest.mark.parametrize("enumerate", ["parallel", "sequential"])
def test_the_mixture_is_exact_where_pyro_enumerates_it(enumerate):
    problem = GaussianMixture(enumerate=enumerate)
    loss, gradients = evaluate(TraceEnum_ELBO(max_plate_nesting=1), problem)
    scale = magnitude(problem)
    assert_close(torch.tensor(-loss), problem.exact_terms().elbo, scale)
    for name, gradient in problem.exact_gradients().items():
        assert_close(-gradients[name], gradient, scale)


def test_the_mixture_refuses_another_enumeration():
    with pytest.raises(ValueError, match="'parallel' or 'sequential'"):
        GaussianMixture(enumerate="paralel")


def test_problems_do_not_share_parameters():
    for cls in ALL:
        problem = cls()
        Trace_ELBO().loss(problem.model, problem.guide, *problem.args)
    names = list(pyro.get_param_store().keys())
    expected = sum(len(cls().parameters()) for cls in ALL)
    assert len(names) == len(set(names)) == expected

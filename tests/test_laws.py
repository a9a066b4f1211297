"""The laws of the losses, over all losses, reference problems and particle modes."""

from __future__ import annotations

import copy
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from support import (
    EPS,
    LOSSES,
    PARTICLES,
    SEQUENTIAL_IS_SLOW,
    assert_close,
    assert_mean,
    clear_gradients,
    evaluate,
    gradients,
)

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, schedules
from pyro_elbo.reference import (
    BetaBernoulli,
    ConjugateNormal,
    GaussianMixture,
    HierarchicalNormal,
    LinearVAE,
)

PROBLEMS = {
    "ConjugateNormal": ConjugateNormal,
    "LinearVAE": LinearVAE,
    "BetaBernoulli": BetaBernoulli,
    "HierarchicalNormal": HierarchicalNormal,
    "BetaBernoulli-score": partial(BetaBernoulli, reparameterised=False),
    "GaussianMixture-score": GaussianMixture,
    "GaussianMixture-parallel": partial(GaussianMixture, enumerate="parallel"),
    "GaussianMixture-sequential": partial(GaussianMixture, enumerate="sequential"),
}
TERMS = ["reconstruction", "expected_log_prior", "entropy", "kl", "expected_log_joint", "elbo"]
BETAS = [0.0, pytest.param(0.5, marks=pytest.mark.slow), 1.0, 4.0]


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]()


@pytest.fixture(params=LOSSES, ids=lambda cls: cls.__name__)
def loss_class(request):
    return request.param


@pytest.fixture(params=PARTICLES.values(), ids=PARTICLES.keys())
def particles(request):
    return request.param


def largest_term(terms):
    return max(abs(float(getattr(terms, name))) for name in TERMS)


def is_enumerated(problem):
    return isinstance(problem, GaussianMixture) and problem.guide.infer


def test_law_1_the_gap_view_is_trace_elbo(problem, particles):
    pyro_class = TraceEnum_ELBO if is_enumerated(problem) else Trace_ELBO
    for seed in range(5):
        loss, grads = evaluate(TraceGap_ELBO(**particles), problem, seed)
        expected, expected_grads = evaluate(pyro_class(**particles), problem, seed)
        assert loss == pytest.approx(expected, rel=1e-12, abs=0)
        for name, grad in expected_grads.items():
            assert ((grads[name] - grad).abs() <= 1e-12 * grad.abs().max()).all(), name


@pytest.mark.parametrize("beta", BETAS)
def test_law_2_the_loss_is_minus_the_objective(loss_class, problem, particles, beta):
    elbo = loss_class(beta=beta, **particles)
    loss, _ = evaluate(elbo, problem, seed=1)
    terms = elbo.terms
    assert -loss == terms.objective
    scale = max(1.0, beta) * largest_term(terms)
    assert_close(terms.objective, terms.reconstruction - terms.weighted_kl, scale)
    assert_close(terms.weighted_kl, beta * terms.kl, scale)
    assert terms.beta == beta


def test_law_3_the_three_views_are_one_number(loss_class, problem, particles):
    elbo = loss_class(beta=0.5, **particles)
    evaluate(elbo, problem, seed=2)
    terms = elbo.terms
    views = [terms.reconstruction_kl, terms.joint_entropy, terms.evidence_gap(3.0)]
    views += [] if is_enumerated(problem) else [terms.evidence_gap()]
    for view in views:
        assert_close(view.elbo, terms.elbo, largest_term(terms), ulps=8)


def test_law_4_the_objective_is_affine_in_beta(loss_class, problem, particles):
    losses, grads = zip(
        *(
            evaluate(loss_class(beta=beta, **particles), problem, seed=3)
            for beta in (0.0, 1.0, 4.0)
        ),
        strict=True,
    )
    assert losses[2] - losses[0] == pytest.approx(4 * (losses[1] - losses[0]), rel=1e-10)
    for name in grads[0]:
        slope = grads[1][name] - grads[0][name]
        scale = grads[2][name].abs().max() + grads[0][name].abs().max()
        assert_close(grads[2][name] - grads[0][name], 4 * slope, scale, ulps=1024)


def evaluations(elbo, problem, count):
    """Terms, per-site terms and gradients of independent evaluations, stacked."""
    pyro.set_rng_seed(11)
    rows = []
    for _ in range(count):
        loss, grads = evaluate(elbo, problem)
        terms = {name: getattr(elbo.terms, name) for name in TERMS}
        sites = {}
        for name in problem.latents:
            site = elbo.terms.sites[name]
            sites[f"{name} log prior"] = site.log_prior.sum()
            sites[f"{name} log guide"] = site.log_guide.sum()
        rows.append({"objective": torch.tensor(-loss), **terms, **sites, **grads})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def exact_values(problem, beta):
    terms = problem.exact_terms()
    values = {name: getattr(terms, name) for name in TERMS}
    for name, site in problem.exact_sites().items():
        values[f"{name} log prior"] = site.expected_log_prior
        values[f"{name} log guide"] = site.expected_log_guide
    values["objective"] = problem.exact_objective(beta)
    values |= {name: -grad for name, grad in problem.exact_gradients(beta).items()}
    return {name: value.detach() for name, value in values.items()}


def assert_unbiased(elbo, problem, beta, count=150):
    if elbo.vectorize_particles:
        count //= 2  # each is the mean of ten times as many samples
    if is_enumerated(problem) and problem.model.subsample_size is None:
        count = 3  # nothing is drawn
    samples = evaluations(elbo, problem, count)
    exact = exact_values(problem, beta)
    assert samples.keys() == exact.keys()
    for name, value in exact.items():
        assert_mean(samples[name], value, name)


@pytest.mark.parametrize(
    ("particles", "beta"),
    [
        pytest.param(
            options,
            beta,
            marks=pytest.mark.slow if beta == 0.5 or name == "sequential" else (),
            id=f"{name}-{beta}",
        )
        for name, options in PARTICLES.items()
        for beta in (0.0, 0.5, 1.0, 4.0)
    ],
)
def test_laws_5_and_6_terms_and_gradients_are_exact_in_mean(loss_class, problem, particles, beta):
    assert_unbiased(loss_class(beta=beta, **particles), problem, beta)


@SEQUENTIAL_IS_SLOW
def test_laws_5_and_6_with_a_schedule(loss_class, problem, particles):
    schedule = schedules.Linear(4.0, 1.0, num_steps=2)
    elbo = loss_class(beta=schedule, **particles)
    elbo.advance()
    with elbo.hold():
        assert_unbiased(elbo, problem, 2.5)
    assert elbo.step_count == 1


@SEQUENTIAL_IS_SLOW
def test_laws_5_and_6_with_a_weight_by_site(loss_class, problem, particles):
    first, *_ = problem.latents
    betas = {first: 4.0, "*": 0.5}
    elbo = loss_class(beta=betas, **particles)
    by_site = {name: betas.get(name, 0.5) for name in problem.latents}
    assert_unbiased(elbo, problem, by_site)


def test_law_7_at_beta_0_the_prior_gets_no_gradient(loss_class, particles):
    problem = HierarchicalNormal()
    elbo = loss_class(beta=0.0, **particles)
    _, grads = evaluate(elbo, problem, seed=4)
    _, weighted = evaluate(loss_class(beta=1.0, **particles), problem, seed=4)
    exact = problem.exact_gradients(0.0)
    prior_only = [name for name in grads if name.startswith("model.") and not exact[name].any()]
    assert prior_only
    for name in prior_only:
        assert not grads[name].any()
        assert weighted[name].any()


@SEQUENTIAL_IS_SLOW
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("beta", [pytest.param(1.0, marks=pytest.mark.slow), 4.0])
def test_law_8_subsampling_is_unbiased(loss_class, name, particles, beta):
    problem = PROBLEMS[name](subsample_size=2)
    assert_unbiased(loss_class(beta=beta, **particles), problem, beta, count=300)


def test_law_9_at_the_posterior_every_sample_shows_a_gap_of_zero(problem, particles):
    if isinstance(problem, LinearVAE):
        problem.fit_maximum_likelihood()
    problem.set_guide_to_posterior()
    evidence = problem.log_evidence().detach()
    elbo = TraceGap_ELBO(log_evidence=evidence, **particles)
    for seed in range(3):
        evaluate(elbo, problem, seed)
        assert_close(elbo.terms.evidence_gap().gap, torch.zeros(()), largest_term(elbo.terms), 256)


@SEQUENTIAL_IS_SLOW
def test_law_9_the_mean_gap_is_the_posterior_kl(loss_class, problem, particles):
    evidence = problem.log_evidence().detach()
    elbo = loss_class(**particles)
    pyro.set_rng_seed(5)
    gaps = []
    for _ in range(100 if elbo.vectorize_particles else 200):
        elbo.loss(problem.model, problem.guide, *problem.args)
        gaps.append(elbo.terms.evidence_gap(evidence).gap)
    assert_mean(torch.stack(gaps), problem.posterior_kl().detach(), "gap")


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_law_10_the_three_entrances_agree(loss_class, problem, particles, beta):
    elbo = loss_class(beta=beta, **particles)
    elbo.loss(problem.model, problem.guide, *problem.args)
    loss, grads = evaluate(elbo, problem, seed=6)
    pyro.set_rng_seed(6)
    assert elbo.loss(problem.model, problem.guide, *problem.args) == loss
    pyro.set_rng_seed(6)
    clear_gradients(problem.parameters())
    differentiable = elbo.differentiable_loss(problem.model, problem.guide, *problem.args)
    differentiable.backward()
    assert differentiable.item() == loss
    for name, grad in gradients(problem.parameters()).items():
        assert torch.equal(grad, grads[name]), name
    pyro.set_rng_seed(6)
    assert elbo.decompose(problem.model, problem.guide, *problem.args).objective == -loss


def test_law_11_three_ways_to_train_end_at_the_same_parameters(loss_class, problem):
    start = copy.deepcopy([problem.model.state_dict(), problem.guide.state_dict()])

    def ends():
        return {name: p.detach().clone() for name, p in problem.parameters().items()}

    def restart():
        pyro.clear_param_store()
        problem.model.load_state_dict(start[0])
        problem.guide.load_state_dict(start[1])
        pyro.set_rng_seed(7)
        return loss_class(beta=schedules.Linear(4.0, 1.0, num_steps=20))

    elbo = restart()
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    for _ in range(30):
        svi.step(*problem.args)
    by_svi = ends()
    assert elbo.step_count == 30
    moved = [not torch.equal(by_svi[f"guide.{n}"], p) for n, p in start[1].items() if p.numel()]
    assert any(moved)

    elbo = restart()
    module = elbo(problem.model, problem.guide)
    optim = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(30):
        optim.zero_grad()
        module(*problem.args).backward()
        optim.step()
    assert elbo.step_count == 30
    by_module = ends()

    elbo = restart()
    optim = torch.optim.Adam(problem.parameters().values(), lr=0.01)
    for _ in range(30):
        optim.zero_grad()
        elbo.differentiable_loss(problem.model, problem.guide, *problem.args).backward()
        optim.step()
        elbo.advance()
    by_hand = ends()

    for name in by_svi:
        assert torch.equal(by_svi[name], by_module[name]), name
        assert torch.equal(by_svi[name], by_hand[name]), name


@pytest.mark.parametrize("subsample_size", [None, 2])
@pytest.mark.parametrize("name", PROBLEMS)
def test_law_13_per_datum_terms_sum_to_the_terms(loss_class, name, subsample_size):
    problem = PROBLEMS[name](subsample_size=subsample_size)
    plate = "groups" if name == "HierarchicalNormal" else "data"
    elbo = loss_class(num_particles=4, vectorize_particles=True, beta=4.0)
    evaluate(elbo, problem, seed=8)
    terms, data = elbo.terms, elbo.terms.per_datum(plate)
    assert data.elbo.shape == data.indices.shape
    outside = [site for site in terms.sites.values() if plate not in site.plates]
    for name, part in [
        ("reconstruction", "log_likelihood"),
        ("expected_log_prior", "log_prior"),
        ("expected_log_guide", "log_guide"),
        ("kl", "kl"),
        ("weighted_kl", "weighted_kl"),
    ]:
        total = data.scale * getattr(data, name).sum()
        total = total + sum(getattr(site, part).sum() for site in outside)
        assert_close(total, getattr(terms, name), largest_term(terms))


def test_per_datum_terms_are_each_datums_own():
    problem = ConjugateNormal(num_data=6, subsample_size=3)
    elbo = TraceKL_ELBO()
    pyro.set_rng_seed(9)
    data = elbo.decompose(problem.model, problem.guide, *problem.args).per_datum("data")
    full = ConjugateNormal(num_data=6)
    everything = elbo.decompose(full.model, full.guide, *full.args).per_datum("data")
    assert len(data.indices) == 3
    assert len(set(data.indices.tolist())) == 3
    assert_close(data.kl, everything.kl[data.indices])
    assert data.scale == 2.0


def test_the_suite_can_fail():
    samples = torch.randn(200, 3)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(samples, torch.ones(3))
    with pytest.raises(AssertionError):
        assert_close(torch.tensor(1.0 + 100 * EPS), torch.tensor(1.0))

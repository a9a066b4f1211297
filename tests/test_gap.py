"""The gap between evidence and ELBO: the KL to the posterior, in total and per datum."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import assert_close, assert_mean
from test_evidence import X, discrete, discrete_guide, local, wide
from torch.distributions import kl_divergence

from pyro_elbo import TraceGap_ELBO, diagnostics, evidence, reference
from pyro_elbo.evidence.mean_ratio import MeanLogRatio
from pyro_elbo.evidence.weigher import Weigher

PROBLEMS = {
    "ConjugateNormal": reference.ConjugateNormal,
    "HierarchicalNormal": reference.HierarchicalNormal,
    "subsampled": lambda: reference.HierarchicalNormal(subsample_size=3),
    "BetaBernoulli": reference.BetaBernoulli,
    "GaussianMixture": reference.GaussianMixture,
}


class Known:
    """An estimator that is told the truth."""

    def __init__(self, log_evidence):
        self.log_evidence = torch.as_tensor(log_evidence)

    def estimate(self, model, guide, *args, **kwargs):
        zero = torch.zeros(())
        return evidence.EvidenceEstimate(self.log_evidence, zero, "exact", 1, zero + 1, zero)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_elbo_is_that_of_the_losses(name):
    problem = PROBLEMS[name]()
    weigher = Weigher(problem.model, problem.guide, problem.args, {}, None)
    with torch.no_grad():
        estimates = [MeanLogRatio(200, progress=False).weigh(weigher) for _ in range(40)]
    assert_mean(torch.stack([e.value for e in estimates]), problem.exact_terms().elbo.detach())
    z = [(e.value - problem.exact_terms().elbo) / e.standard_error for e in estimates]
    assert_mean(torch.stack(z).detach().square(), torch.ones(()))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gap_is_the_kl_to_the_posterior(name):
    problem = PROBLEMS[name]()
    estimator = Known(problem.log_evidence().detach())
    args = problem.model, problem.guide, *problem.args
    gaps = [
        diagnostics.evidence_gap(*args, estimator=estimator, num_samples=100) for _ in range(20)
    ]
    assert_mean(torch.stack([gap.value for gap in gaps]), problem.posterior_kl().detach())


def test_the_gap_of_each_datum():
    posterior, guide = dist.Normal(X / 2, 0.5**0.5), dist.Normal(X / 2, 0.9)
    estimator = evidence.ImportanceWeighting(2000, progress=False)
    gaps = [
        diagnostics.evidence_gap(local, wide, X, estimator=estimator, num_samples=500)
        for _ in range(30)
    ]
    exact = kl_divergence(guide, posterior)
    errors = [(gap.per_datum.value - exact) / gap.per_datum.standard_error for gap in gaps]
    assert_mean(torch.stack(errors).square(), torch.ones(6))
    assert gaps[0].per_datum.plates == ("data",)
    assert gaps[0].per_datum.indices.tolist() == list(range(6))
    assert_close(gaps[0].value, gaps[0].per_datum.value.sum(), 30.0)


def test_an_enumerated_evidence_makes_the_gap_exact():
    gap = diagnostics.evidence_gap(
        discrete, discrete_guide, X, estimator=evidence.Enumeration(), num_samples=4000
    )
    components = dist.Normal(torch.arange(3.0), 1.0).log_prob(X[:, None])
    joint = components + torch.tensor([0.2, 0.5, 0.3]).log()
    q = torch.tensor([0.3, 0.4, 0.3])
    exact = (q * (q.log() - joint.log_softmax(-1))).sum()
    assert str(gap).startswith("gap = ")
    assert (gap.value - exact).abs() < 7 * gap.standard_error


def test_simulated_data_beside_it():
    annealing = evidence.AnnealedImportance(4, 3, start="prior", progress=False)
    gap = diagnostics.evidence_gap(
        local, wide, X, num_samples=20, simulated=evidence.BidirectionalMonteCarlo(annealing)
    )
    assert str(gap).startswith("gap ≥ ")
    assert "on simulated data" in str(gap)


def test_the_posterior_has_no_gap():
    problem = reference.HierarchicalNormal()
    problem.set_guide_to_posterior()
    args = problem.model, problem.guide, *problem.args
    gap = diagnostics.evidence_gap(*args, num_samples=5)
    assert_close(gap.value, torch.zeros(()), 100.0, ulps=256)
    with pytest.raises(ValueError, match="no datum has a gap of its own: all data share mu"):
        _ = gap.per_datum


def test_a_weight_of_the_loss_changes_nothing():
    pyro.set_rng_seed(0)
    gap = diagnostics.evidence_gap(local, wide, X, num_samples=50)
    TraceGap_ELBO(beta=4.0).loss(local, wide, X)
    pyro.set_rng_seed(0)
    assert_close(diagnostics.evidence_gap(local, wide, X, num_samples=50).value, gap.value)

"""The gap in two parts: what the family cannot reach, and what the guide's choice loses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal, AutoNormal
from pyro.nn import PyroModule
from support import assert_close
from torch import nn
from torch.distributions import kl_divergence

from pyro_elbo import UnsupportedSiteError, diagnostics, evidence
from pyro_elbo.diagnostics.free_families import FreeFamilies

X = torch.tensor([3.0, -2.0, 0.5, 1.0], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def correlated(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.7), obs=x)


class Encoder(PyroModule):
    """Too little slope, too wide: what amortisation loses."""

    def __init__(self, size=None):
        super().__init__()
        self.size = size
        self.slope = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            if self.size is None:
                pyro.sample("z", dist.Normal(self.slope * x, 0.9))
            else:
                loc = (self.slope * x).unsqueeze(-1).expand(-1, self.size)
                pyro.sample("z", dist.Normal(loc, 0.9).to_event(1))


def parts_of(model, guide, **kwargs):
    options = {"num_steps": 300, "num_samples": 2000, "progress": False, **kwargs}
    estimator = evidence.ImportanceWeighting(4000, progress=False)
    return diagnostics.amortisation_gap(model, guide, X, estimator=estimator, **options)


def test_a_family_that_holds_the_posterior_has_no_approximation_gap():
    guide = Encoder()
    parts = parts_of(model, guide)
    lost = kl_divergence(dist.Normal(0.3 * X, 0.9), dist.Normal(X / 2, 0.5**0.5)).sum()
    assert (parts.amortisation - lost).abs() < 6 * parts.amortisation_error
    assert parts.approximation.abs() < 6 * parts.approximation_error
    assert_close(parts.approximation + parts.amortisation, parts.gap.value, 30.0)
    assert guide.slope == torch.tensor(0.3)
    assert guide.slope.grad is None


def test_a_family_without_correlations_keeps_an_approximation_gap():
    """The mean-field optimum has the precisions of the posterior on its diagonal."""
    precision = torch.eye(2) + 1 / 0.7**2
    exact = len(X) * 0.5 * (precision.diag().log().sum() - precision.logdet())
    parts = parts_of(correlated, Encoder(2))
    assert (parts.approximation - exact).abs() < 6 * parts.approximation_error
    assert parts.amortisation > 6 * parts.amortisation_error
    assert "approximation gap" in str(parts)


@pytest.mark.parametrize("cls", [AutoNormal, AutoDiagonalNormal])
def test_a_guide_that_is_not_amortised_can_be_refitted_too(cls):
    def positive(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, torch.tensor(1.0)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    pyro.set_rng_seed(0)
    guide = cls(positive, init_scale=0.9)
    guide(X)
    parts = parts_of(positive, guide)
    assert parts.amortisation > 6 * parts.amortisation_error
    assert parts.approximation > -6 * parts.approximation_error


def test_discrete_sites_are_refitted_by_their_scores():
    def mixture(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.8])))
            pyro.sample("x", dist.Normal(2.0 * c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.5])))

    parts = parts_of(mixture, guide, num_particles=50)
    assert parts.approximation < parts.amortisation


def flow(x):
    transform = affine_autoregressive(2, hidden_dims=[4])
    with pyro.plate("data", len(x)):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [transform]))


def dependent(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.3 * x, 0.9))
        pyro.sample("w", dist.Normal(z, 0.9))


def two_latents(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as indices:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])


def subsampled_guide(x):
    with pyro.plate("data", len(x), subsample_size=2) as indices:
        pyro.sample("z", dist.Normal(0.3 * x[indices], 0.9))


@pytest.mark.parametrize(
    ("model", "guide", "match"),
    [
        (correlated, flow, "site 'z': its TransformedDistribution has no parameters"),
        (two_latents, dependent, "site 'w': its distribution in the guide may depend"),
        (subsampled, subsampled_guide, "plate 'data' is subsampled"),
    ],
    ids=["flow", "dependent", "subsampled"],
)
def test_what_cannot_be_refitted_is_refused(model, guide, match):
    with pytest.raises((UnsupportedSiteError, ValueError), match=match):
        diagnostics.amortisation_gap(model, guide, X, num_samples=5, num_steps=1)


def test_a_normalising_autoguide_is_refused():
    guide = AutoIAFNormal(correlated, hidden_dim=[8])
    guide(X)
    with pytest.raises(UnsupportedSiteError, match="_AutoIAFNormal_latent.*no parameters"):
        diagnostics.amortisation_gap(correlated, guide, X, num_samples=5, num_steps=1)


def test_an_untrained_guide_has_the_evidence_of_the_refitted_one():
    """Its own weights miss the posterior, and would make the approximation gap negative."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def far(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + 4, 0.2))

    parts = diagnostics.amortisation_gap(model, far, X, num_steps=300, progress=False)
    exact = dist.Normal(0.0, 2**0.5).log_prob(X).sum()
    assert (parts.gap.evidence.value - exact).abs() < 6 * parts.gap.evidence.standard_error + 1e-3
    assert parts.approximation.abs() < 6 * parts.approximation_error + 1e-2


ONES = torch.ones(3, dtype=torch.float64)
FAMILIES = {
    "LogNormal": lambda: dist.LogNormal(0.1 * ONES, 0.5 * ONES),
    "LogNormal, of events": lambda: dist.LogNormal(ONES[:, None], ONES[:, None]).to_event(1),
    "HalfNormal": lambda: dist.HalfNormal(2.0 * ONES),
    "InverseGamma": lambda: dist.InverseGamma(3.0 * ONES, 2.0 * ONES),
    "Beta": lambda: dist.Beta(2.0 * ONES, 3.0 * ONES),
    "Kumaraswamy": lambda: dist.Kumaraswamy(2.0 * ONES, 3.0 * ONES),
    "Weibull": lambda: dist.Weibull(ONES, 1.5 * ONES),
    "Gumbel": lambda: dist.Gumbel(0.3 * ONES, ONES),
    "Bernoulli, logits": lambda: dist.Bernoulli(logits=0.4 * ONES),
    "Bernoulli, probs": lambda: dist.Bernoulli(0.4 * ONES),
    "Categorical, logits": lambda: dist.Categorical(logits=torch.tensor([[0.0, 1.0]] * 3)),
    "a transform": lambda: dist.TransformedDistribution(
        dist.Normal(0.2 * ONES, ONES), dist.transforms.SigmoidTransform()
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_that_is_set_free_begins_where_it_was(name):
    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", FAMILIES[name]())

    free = FreeFamilies(guide, (), {})
    torch.manual_seed(0)
    values = FAMILIES[name]().sample((50,))
    site = poutine.trace(free).get_trace().nodes["z"]
    assert list(free.parameters()) and site["fn"].batch_shape == (3,)
    assert_close(site["fn"].log_prob(values), FAMILIES[name]().log_prob(values), 10.0)

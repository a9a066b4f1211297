"""Evidence and guide quality: bounds that are none, and weights that sit in one joint site."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGaussian, AutoNormal, AutoStructured
from pyro.infer.importance import psis_diagnostic
from support import LOSSES, assert_mean

from pyro_elbo import UnsupportedSiteError, diagnostics, evidence

NUM_DATA, SIZE = 200, 20
DATA = dist.Normal(0.0, 2**0.5).icdf((torch.arange(NUM_DATA) + 0.5).double() / NUM_DATA)
EXACT = dist.Normal(0.0, 2**0.5).log_prob(DATA).sum()


def local(scale=1.0, size=SIZE):
    with poutine.scale(scale=scale), pyro.plate("data", NUM_DATA, subsample_size=size) as indices:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[indices])


def local_guide(scale=1.0, size=SIZE):
    with poutine.scale(scale=scale), pyro.plate("data", NUM_DATA, subsample_size=size):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def test_renyi_elbo_with_subsampling():
    """Pyro's is far above the truth, and under a scale falls back to the ELBO; ours is below it."""
    renyi = RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1)
    claimed = torch.tensor([-renyi.loss(local, local_guide) for _ in range(100)])
    assert claimed.max() > EXACT + 7 * 0.5
    estimator = evidence.ImportanceWeighting(50, progress=False)
    ours = [estimator.estimate(local, local_guide) for _ in range(20)]
    assert max((e.value - EXACT) / e.standard_error for e in ours) < 7
    scaled = estimator.estimate(local, local_guide, 1 / NUM_DATA)
    assert (scaled.value - EXACT).abs() < 7 * scaled.standard_error


def both(size=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", NUM_DATA, subsample_size=size) as indices:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[indices])


def both_guide(size=None):
    precision = 1 + NUM_DATA / 2
    mu = pyro.sample("mu", dist.Normal(DATA.sum() / 2 / precision, 1.1 * precision**-0.5))
    with pyro.plate("data", NUM_DATA, subsample_size=size) as indices:
        pyro.sample("z", dist.Normal((mu + DATA[indices]) / 2, 0.9))


COVARIANCE = 2 * torch.eye(NUM_DATA, dtype=torch.float64) + 1
BOTH = dist.MultivariateNormal(torch.zeros(NUM_DATA).double(), COVARIANCE).log_prob(DATA)


def test_global_and_local_latents_together():
    """One weight for all data has a handful of samples that count; the nested bound is tight."""
    guide = AutoDiagonalNormal(both)
    guide()
    guide.loc.data, guide.scale = _mean_and_sd()
    joint = evidence.ImportanceWeighting(2000, progress=False).estimate(both, guide)
    nested = evidence.ImportanceWeighting(200, num_local_samples=100, progress=False).estimate(
        both, both_guide
    )
    assert (nested.value - BOTH).abs() < 7 * nested.standard_error
    assert joint.ess < 0.05 * joint.num_samples
    assert nested.ess > 0.3 * nested.num_samples
    assert nested.standard_error < joint.standard_error


def _mean_and_sd():
    """Of the guide above, as independent normals."""
    precision = 1 + NUM_DATA / 2
    mu = DATA.sum() / 2 / precision
    mean = torch.cat([mu.reshape(1), (mu + DATA) / 2])
    sd = torch.cat([torch.tensor([1.1 * precision**-0.5]), torch.full((NUM_DATA,), 0.9)])
    return mean, sd


@pytest.mark.parametrize("size", [SIZE, 30])
def test_a_global_latent_and_subsampling(size):
    """All minibatches at the same global samples; 30 does not divide 200."""
    estimator = evidence.ImportanceWeighting(100, num_local_samples=20, progress=False)
    estimate = estimator.estimate(both, both_guide, size)
    assert (estimate.value - BOTH).abs() < 7 * estimate.standard_error


@pytest.mark.parametrize("cls", [AutoDiagonalNormal, AutoStructured, AutoGaussian])
def test_local_latents_in_joint_autoguides(cls):
    def model():
        local(size=None)

    pyro.set_rng_seed(0)
    guide = cls(model)
    guide()
    with pytest.raises(UnsupportedSiteError, match="outside of plate 'data'.*AutoNormal"):
        evidence.ImportanceWeighting(10, plate="data").estimate(model, guide)
    own = AutoNormal(model)
    own()
    estimate = evidence.ImportanceWeighting(10, progress=False).estimate(model, own)
    assert estimate.per_datum.value.shape == (NUM_DATA,)


def guide_of_width(factor):
    """The posterior of each of all data, wider by a factor: then its weights are bounded."""

    def guide():
        with pyro.plate("data", NUM_DATA):
            pyro.sample("z", dist.Normal(DATA / 2, factor * 0.5**0.5))

    return guide


def full():
    local(size=None)


def test_psis_over_a_joint_of_200_data():
    """Pyro has one k-hat, far above 0.7, for 200 data of which none has one above 0."""
    guide = guide_of_width(1.5)
    theirs = psis_diagnostic(full, guide, num_particles=1000, max_plate_nesting=1)
    report = diagnostics.khat(full, guide, num_samples=1000)
    assert theirs > 1.0
    assert report.joint.khat > 1.0
    assert report.per_datum.khat.shape == (NUM_DATA,)
    assert report.per_datum.khat.max() < 0.0
    assert report.per_datum.shares.good == 1.0
    assert report.reliable
    assert "says nothing of any datum" in report.verdict


def test_one_bad_datum_among_200_is_found():
    """The joint is as bad as before; only the k-hats of the data tell which is at fault."""

    def guide():
        sd = torch.full((NUM_DATA,), 1.5 * 0.5**0.5)
        mean = DATA / 2
        mean[17], sd[17] = mean[17] + 5.0, 0.2
        with pyro.plate("data", NUM_DATA):
            pyro.sample("z", dist.Normal(mean, sd))

    report = diagnostics.khat(full, guide, num_samples=1000)
    assert report.joint.khat > 1.0
    assert report.per_datum.bad.nonzero().flatten().tolist() == [17]
    assert not report.reliable
    assert "1 of 200 data have weights that cannot be used (data 17)" in report.verdict


def test_psis_where_the_weights_are_constant():
    """Pyro says inf, which is no better than the worst guide; ours has no k-hat, and says why."""

    def prior():
        with pyro.plate("data", NUM_DATA):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    with pytest.warns(UserWarning, match="Not enough tail samples"):
        theirs = psis_diagnostic(prior, prior, num_particles=1000, max_plate_nesting=1)
    assert theirs == torch.inf
    for report in (diagnostics.khat(prior, prior), diagnostics.khat(full, guide_of_width(1.0))):
        assert report.joint.khat.isnan() and report.per_datum.khat.isnan().all()
        assert report.joint.why == "all weights are equal, as where the guide is the posterior"
        assert report.per_datum.why == report.joint.why
        assert report.reliable


@pytest.mark.parametrize("cls", LOSSES)
def test_every_loss_has_a_differentiable_loss(cls):
    """TraceGraph_ELBO, RenyiELBO and ReweightedWakeSleep have none."""
    losses = torch.stack(
        [cls().differentiable_loss(local, local_guide).detach() for _ in range(200)]
    )
    e_log_lik = dist.Normal(0.0, 1.0).log_prob(DATA) - 0.5
    assert_mean(-losses, e_log_lik.sum())

"""Posterior collapse on every kind of latent: what a unit is, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from per_datum import (
    LOCS,
    NUM_DATA,
    auto_program,
    exact_kl,
    mixture_information,
    normal_program,
    program,
    two_units,
)
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from support import assert_close, assert_mean

from pyro_elbo import UnsupportedSiteError
from pyro_elbo.diagnostics import aggregate, posterior_collapse

REPEATS = 50


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Enough for the mutual information where its error is looked at."""
    monkeypatch.setattr(aggregate, "DRAWS", 200)


def test_latents_that_depend_on_each_other():
    """z2 | z1 has mean z1 + n: the mean over z1 counts, and the KL is averaged over it."""

    def model():
        with pyro.plate("data", NUM_DATA):
            first = pyro.sample("first", dist.Normal(0.0, 1.0))
            pyro.sample("second", dist.Normal(first, 2.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=LOCS)

    def guide():
        with pyro.plate("data", NUM_DATA):
            first = pyro.sample("first", dist.Normal(0.3, 0.9))
            pyro.sample("second", dist.Normal(first + LOCS, 0.5))

    reports = [posterior_collapse(model, guide, num_samples=4) for _ in range(REPEATS)]
    assert reports[0].units == ("first", "second")
    second = (0.25 + LOCS**2) / 8 - 0.5 + math.log(2 / 0.5)
    expected = torch.stack([exact_kl(torch.tensor([0.3]), torch.tensor(0.9)), second.mean()])
    assert_mean(torch.stack([report.kl for report in reports]), expected, "KL")
    activities = torch.stack([report.activity for report in reports])
    assert_mean(activities, torch.stack([torch.tensor(0.0), LOCS.var()]), "activity")
    assert "'first'" in reports[0].no_mutual_information
    alone = posterior_collapse(model, guide, site="first")
    assert alone.units == ("first",) and alone.no_mutual_information is None


def test_noise_that_all_data_share_is_no_activity():
    """A latent whose mean moves with a global sample, in step over data."""

    def model():
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", NUM_DATA):
            pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=LOCS)

    def guide():
        shift = pyro.sample("shift", dist.Normal(0.0, 5.0))
        with pyro.plate("data", NUM_DATA):
            pyro.sample("z", dist.Normal(shift + 0.1 * LOCS, 1.0))

    report = posterior_collapse(model, guide)
    assert_close(report.activity, (0.1 * LOCS).var().reshape(1), scale=25.0)
    assert report.units == ("z",)
    assert report.mutual_information.isnan() and "'shift'" in report.no_mutual_information
    assert "unknown: site 'z'" in str(report)


def test_auto_normal_on_the_reals_is_exact():
    model, guide = auto_program(AutoNormal)
    loc, scale = two_units()
    guide.locs.z = loc
    guide.scales.z = scale.expand(NUM_DATA, 2).clone()
    report = posterior_collapse(model, guide)
    assert_close(report.kl, exact_kl(loc, scale), scale=1.0)
    assert_close(report.activity, loc.var(0), scale=1.0)
    assert report.no_mutual_information is None


def test_auto_normal_on_a_constrained_site_is_sampled():
    """A log-normal posterior through an auxiliary site: the mean is exp(loc + scale² / 2)."""

    def model():
        with pyro.plate("data", NUM_DATA):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=LOCS)

    guide = AutoNormal(model)
    guide()
    guide.locs.z = LOCS / 3
    guide.scales.z = torch.full_like(LOCS, 0.4)
    reports = [posterior_collapse(model, guide, num_samples=4) for _ in range(REPEATS)]
    kl = exact_kl(LOCS / 3, torch.tensor(0.4)).reshape(1)
    assert_mean(torch.stack([report.kl for report in reports]), kl, "KL")
    activities = torch.stack([report.activity for report in reports])
    assert_mean(activities, (LOCS / 3 + 0.08).exp().var().reshape(1), "activity")
    information = torch.stack([report.mutual_information for report in reports])
    assert_mean(information, mixture_information(LOCS / 3, torch.tensor(0.4)), "I(x; z)")


def test_a_guide_that_runs_the_model_itself():
    model, guide = auto_program(AutoNormalMessenger)
    report = posterior_collapse(model, guide)
    assert report.units == ("z[0]", "z[1]") and report.no_mutual_information is None
    assert_close(report.kl_standard_error, torch.zeros(2), scale=10.0)


def test_discrete_latents_enumerated_or_not():
    logits = torch.stack([LOCS, -LOCS, 0 * LOCS], -1)
    chances = torch.stack([LOCS.sigmoid(), torch.full_like(LOCS, 0.3)], -1)

    def model():
        with pyro.plate("data", NUM_DATA):
            pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("b", dist.Bernoulli(torch.full((2,), 0.4)).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=LOCS)

    def guide():
        with pyro.plate("data", NUM_DATA):
            pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("b", dist.Bernoulli(chances).to_event(1))

    probs = logits.softmax(-1)
    of_c = (probs * (probs * 3).log()).sum(-1).mean().reshape(1)
    of_b = (chances * (chances / 0.4).log() + (1 - chances) * ((1 - chances) / 0.6).log()).mean(0)
    for side in (guide, config_enumerate(guide)):
        report = posterior_collapse(model, side)
        assert report.units == ("c", "b[0]", "b[1]")
        assert_close(report.kl, torch.cat([of_c, of_b]), scale=1.0)
        expected = torch.cat([probs.var(0).max().reshape(1), chances.var(0)])
        assert_close(report.activity, expected, scale=1.0)
        assert report.active.tolist() == [True, True, False]


def test_what_depends_on_an_enumerated_latent_is_sampled():
    def both(observe):
        with pyro.plate("data", NUM_DATA):
            c = pyro.sample("c", dist.Bernoulli(0.3))
            pyro.sample("z", dist.Normal(0.0 if observe else c + LOCS, 1.0))
            if observe:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=LOCS)

    guide = config_enumerate(lambda: both(False))
    reports = [posterior_collapse(lambda: both(True), guide) for _ in range(REPEATS)]
    activities = torch.stack([report.activity for report in reports])
    assert reports[0].units == ("c", "z")
    assert_mean(activities, torch.stack([torch.tensor(0.0), LOCS.var()]), "activity")
    kl = (LOCS**2 + 0.3 * (2 * LOCS + 1)).mean() / 2
    assert_mean(torch.stack([report.kl[1] for report in reports]), kl, "KL")


def test_a_joint_distribution_is_one_unit():
    loc, _ = two_units()
    covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    model, guide = program(
        lambda: dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        lambda: dist.MultivariateNormal(loc, covariance),
        NUM_DATA,
    )
    report = posterior_collapse(model, guide)
    kl = (loc**2).sum(-1).mean() / 2 - torch.logdet(covariance) / 2
    assert report.units == ("z",)
    assert_close(report.kl, kl.reshape(1), scale=1.0, ulps=256)
    assert_close(report.activity, LOCS.var().reshape(1), scale=1.0)


def test_units_in_a_plate_of_their_own():
    def both(observe):
        data = pyro.plate("data", NUM_DATA, dim=-1)
        with data, pyro.plate("units", 3, dim=-2):
            loc, scale = torch.tensor([[1.0], [0.01], [0.0]]) * LOCS, 0.5
            pyro.sample("z", dist.Normal(0.0, 1.0) if observe else dist.Normal(loc, scale))
        if observe:
            with data:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=LOCS)

    report = posterior_collapse(lambda: both(True), lambda: both(False))
    assert report.plate == "data" and report.units == ("z[0]", "z[1]", "z[2]")
    assert report.active.tolist() == [True, False, False]
    loc = torch.tensor([1.0, 0.01, 0.0]) * LOCS.unsqueeze(-1)
    assert_close(report.kl, exact_kl(loc, torch.tensor(0.5)), scale=1.0)


def test_a_subsampled_plate_is_of_one_minibatch():
    def model():
        with pyro.plate("data", NUM_DATA, subsample_size=5) as indices:
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=LOCS[indices])

    def guide():
        with pyro.plate("data", NUM_DATA, subsample_size=5) as indices:
            seen.append(indices)
            pyro.sample("z", dist.Normal(LOCS[indices], 0.5))

    seen = []
    report = posterior_collapse(model, guide)
    loc = LOCS[seen[0]]
    assert (report.num_data, report.full_size) == (5, NUM_DATA)
    assert_close(report.kl, exact_kl(loc, torch.tensor(0.5)).reshape(1), scale=1.0)
    assert_close(report.activity, loc.var().reshape(1), scale=1.0)
    assert report.mutual_information.isnan() and "subsampled" in report.no_mutual_information
    assert "a minibatch of 5 data" in str(report)


@pytest.mark.parametrize("autoguide", [AutoDiagonalNormal, AutoMultivariateNormal, AutoDelta])
def test_a_guide_without_a_density_of_each_datum_is_refused(autoguide):
    model, guide = auto_program(autoguide)
    with pytest.raises(UnsupportedSiteError, match="z.*AutoNormal"):
        posterior_collapse(model, guide)


def test_masks_and_missing_means_are_refused():
    masked = [poutine.mask(side, LOCS > 0) for side in normal_program()]
    with pytest.raises(UnsupportedSiteError, match="'z'.*masked"):
        posterior_collapse(*masked)
    cauchy = program(lambda: dist.Cauchy(0.0, 1.0), lambda: dist.Cauchy(LOCS, 1.0), NUM_DATA)
    with pytest.raises(UnsupportedSiteError, match="'z': Cauchy has no finite mean"):
        posterior_collapse(*cauchy)


def test_the_plate_must_be_known():
    def model(nested):
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            if nested:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(3, 4))

    def guide(nested):
        with pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 4, dim=-1):
            pyro.sample("z", dist.Normal(torch.arange(3.0).unsqueeze(-1), 1.0))

    with pytest.raises(ValueError, match=r"\['columns', 'rows'\].*plate="):
        posterior_collapse(model, guide, True)
    with pytest.raises(ValueError, match="no plates.*'columns', 'rows'"):
        posterior_collapse(model, guide, False)
    with pytest.raises(ValueError, match="'nope'.*'columns', 'rows'"):
        posterior_collapse(model, guide, True, plate="nope")
    report = posterior_collapse(model, guide, True, plate="rows")
    assert report.num_data == 3 and report.units == tuple(f"z[{i}]" for i in range(4))
    assert_close(report.activity, torch.ones(4), scale=1.0)

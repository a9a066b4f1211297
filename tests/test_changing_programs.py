"""Programs whose dependencies, masks and roles change from run to run."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import LOSSES, assert_close, assert_mean, assert_same_mean

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO

pytestmark = pytest.mark.filterwarnings("ignore:site 'z'")
loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def hierarchical(depends):
    w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("z", dist.Normal(w if depends else torch.zeros(()), 1.0))


def reversed_guide(depends):
    scale = pyro.param("s", torch.tensor(0.8))
    z = pyro.sample("z", dist.Normal(torch.tensor(0.3), scale))
    pyro.sample("w", dist.Normal(2 * z, 0.5))


@loss_classes
@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_a_flag_that_changes_who_depends_on_whom(cls, order):
    """What was proven of one run is not proven of the next, of the same sites."""
    elbo = cls(num_particles=2000, vectorize_particles=True, max_plate_nesting=0)
    for depends in order:
        losses = torch.tensor([elbo.loss(hierarchical, reversed_guide, depends) for _ in range(50)])
        s2, half_log_tau = torch.tensor(0.8).double() ** 2, 0.5 * math.log(2 * math.pi)
        log_w = -half_log_tau - 0.5 * (4 * (s2 + 0.09) + 0.25)
        squared = s2 + 0.25 + 0.09 if depends else s2 + 0.09
        log_z = -half_log_tau - 0.5 * squared
        entropy = 2 * half_log_tau + 1 + math.log(0.8) + math.log(0.5)
        assert_mean(losses, -(log_w + log_z + entropy))


def test_what_is_refuted_needs_no_second_run():
    """And what was proven is proven again each time."""
    runs = []

    def counted(depends):
        runs.append(depends)
        reversed_guide(depends)

    elbo = TraceKL_ELBO()
    for _ in range(5):
        elbo.loss(hierarchical, counted, True)
    assert len(runs) == 6
    for _ in range(5):
        TraceKL_ELBO().loss(hierarchical, counted, False)
    assert len(runs) == 16


def by_mask(kind):
    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        mask = poutine.mask(mask=w > 0)
        handler = mask if kind == "mask" else poutine.scale(scale=1.0 + (w > 0))
        with handler:
            pyro.sample("z", dist.Normal(torch.tensor(2.0), 0.5))

    def guide():
        mask = poutine.mask(mask=torch.tensor(True))
        with mask if kind == "mask" else poutine.scale(scale=torch.tensor(2.0)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.3), 0.8))
        pyro.sample("w", dist.Normal(2 * z, 0.5))

    return model, guide


@pytest.mark.parametrize("kind", ["mask", pytest.param("scale", marks=pytest.mark.slow)])
def test_a_mask_or_scale_that_depends_on_another_site(kind):
    model, guide = by_mask(kind)
    losses = [
        torch.tensor([cls().loss(model, guide) for _ in range(1500)])
        for cls in (TraceKL_ELBO, TraceGap_ELBO)
    ]
    assert_same_mean(*losses)


def sometimes_observed():
    c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5))).item()
    pyro.sample("z", dist.Normal(torch.zeros(()), 1.0), obs=torch.tensor(0.7) if c else None)


def sometimes_sampled():
    c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4))).item()
    if not c:
        pyro.sample("z", dist.Normal(torch.tensor(0.2), 0.8))


@loss_classes
def test_a_site_that_is_observed_in_some_particles_has_both_records(cls):
    pyro.set_rng_seed(3)
    elbo = cls(num_particles=8, beta=4.0, max_plate_nesting=0)
    loss = elbo.loss(sometimes_observed, sometimes_sampled)
    terms = elbo.terms
    assert {"c", "z", "z (observed)"} == set(terms.sites)
    assert_close(terms.objective, torch.tensor(-loss), 10.0)
    assert_close(terms.objective, terms.reconstruction - terms.weighted_kl, 10.0)
    assert terms.sites["z (observed)"].role == "observed"
    assert terms.beta == 4.0


@loss_classes
def test_a_mask_of_a_distribution_is_that_of_a_site(cls):
    """Its score is that of its sample, masked or not: the exact gradient is -0.2."""

    def model(own):
        fn = dist.Bernoulli(torch.tensor(0.5))
        with poutine.mask(mask=own):
            z = pyro.sample("z", fn.mask(False) if own else fn)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    def guide(own):
        fn = dist.Bernoulli(pyro.param("q", torch.tensor(0.3)))
        with poutine.mask(mask=own):
            pyro.sample("z", fn.mask(False) if own else fn)

    grads = []
    for own in (True, False):
        pyro.clear_param_store()
        guide(own)
        pyro.set_rng_seed(0)
        for _ in range(300):
            pyro.param("q").grad = None
            cls().loss_and_grads(model, guide, own)
            grads.append(pyro.param("q").grad.clone())
    own, site = torch.stack(grads).chunk(2)
    assert_close(own, site, 10.0)
    log_prob = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(0.7))
    assert_mean(own, log_prob[0] - log_prob[1])


@loss_classes
@pytest.mark.parametrize("how", ["parallel", "sequential"])
def test_the_sum_over_a_masked_distribution_is_weighted_by_it(cls, how):
    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)).mask(False))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    def guide():
        fn = dist.Bernoulli(torch.tensor(0.3)).mask(False)
        pyro.sample("z", fn, infer={"enumerate": how})

    log_prob = dist.Normal(torch.tensor([0.0, 1.0]), 1.0).log_prob(torch.tensor(0.7))
    exact = 0.7 * log_prob[0] + 0.3 * log_prob[1]
    assert_close(torch.tensor(-cls().loss(model, guide)), exact, 10.0)

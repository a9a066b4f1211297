"""Supports that move with parameters, where the mean of a score is not 0."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from support import LOSSES, assert_mean
from torch.distributions import constraints

from pyro_elbo import TraceGap_ELBO, UnsupportedSiteError
from pyro_elbo.elbo.supports import moves

FREE = torch.tensor(1.5, requires_grad=True, dtype=torch.float64)
FIXED = torch.tensor(1.5, dtype=torch.float64)


def pushed(base, *parts):
    return dist.TransformedDistribution(base, list(parts))


def affine(loc, scale):
    return transforms.AffineTransform(loc, scale)


NORMAL = dist.Normal(FREE, FREE)
MOVING = {
    "Uniform": dist.Uniform(torch.zeros(()), FREE),
    "Uniform.to_event": dist.Uniform(torch.zeros(2), FREE.expand(2)).to_event(1),
    "Uniform.mask": dist.Uniform(torch.zeros(()), FREE).mask(False),
    "Pareto": dist.Pareto(FREE, FIXED),
    "shifted Exponential": pushed(dist.Exponential(FIXED), affine(FREE, 1.0)),
    "scaled unit interval": pushed(NORMAL, transforms.SigmoidTransform(), affine(0.0, FREE)),
    "shifted log-normal": pushed(NORMAL, transforms.ExpTransform(), affine(FREE, 1.0)),
    "composed": pushed(
        NORMAL, transforms.ComposeTransform([transforms.ExpTransform(), affine(FREE, 1.0)])
    ),
    "a flow on an interval": pushed(
        dist.Uniform(torch.zeros(2), torch.ones(2)).to_event(1), transforms.planar(2)
    ),
}
STAYING = {
    "Normal": NORMAL,
    "MultivariateNormal": dist.MultivariateNormal(FREE.expand(2), torch.eye(2)),
    "Gamma": dist.Gamma(FREE, FREE),
    "Beta": dist.Beta(FREE, FREE),
    "Dirichlet": dist.Dirichlet(FREE.expand(3)),
    "Weibull": dist.Weibull(FREE, FREE),
    "Gumbel": dist.Gumbel(FREE, FREE),
    "Kumaraswamy": dist.Kumaraswamy(FREE, FREE),
    "LogNormal": dist.LogNormal(FREE, FREE),
    "Uniform": dist.Uniform(torch.zeros(()), FIXED),
    "Bernoulli": dist.Bernoulli(FREE / 2),
    "RelaxedBernoulli": dist.RelaxedBernoulli(FIXED, logits=FREE),
    "scaled Exponential": pushed(dist.Exponential(FIXED), affine(0.0, FREE)),
    "interval": pushed(NORMAL, transforms.SigmoidTransform(), affine(-1.0, 2.0)),
    "affine Normal": pushed(NORMAL, affine(FREE, FREE)),
    "flow": pushed(dist.Normal(torch.zeros(2), 1.0).to_event(1), transforms.planar(2)),
    "Delta": dist.Delta(FREE),
}


@pytest.mark.parametrize("name", MOVING)
def test_what_moves(name):
    assert moves(MOVING[name])


@pytest.mark.parametrize("name", STAYING)
def test_what_stays(name):
    assert not moves(STAYING[name])


def model():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.7))


def uniform(score=False):
    low = pyro.param("low", torch.tensor(-1.0))
    high = pyro.param("high", torch.tensor(1.5))
    fn = dist.Uniform(low, high)
    pyro.sample("z", fn.has_rsample_(False) if score else fn)


def test_a_path_derivative_of_a_moving_support_is_refused():
    with pytest.raises(UnsupportedSiteError, match="'z'.*move the support"):
        TraceGap_ELBO(path_derivative=True).loss_and_grads(model, uniform)


@pytest.mark.parametrize("cls", LOSSES)
def test_a_score_of_a_moving_support_is_refused(cls):
    with pytest.raises(UnsupportedSiteError, match="'z'.*move its support"):
        cls().loss_and_grads(model, lambda: uniform(score=True))


@pytest.mark.parametrize("cls", LOSSES)
def test_a_reparameterised_one_is_right(cls):
    """E[log p] is minus half the second moments about 0 and 0.7, and the entropy log(b - a)."""
    a, b = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    mean, square = (a + b) / 2, (a * a + a * b + b * b) / 3
    loss = 0.5 * square + 0.5 * (square - 1.4 * mean) - (b - a).log()
    exact = torch.stack(torch.autograd.grad(loss, [a, b]))
    uniform()
    store, grads = pyro.get_param_store()._params, []
    elbo = cls(num_particles=20, vectorize_particles=True, max_plate_nesting=0)
    for _ in range(300):
        for name in ("low", "high"):
            store[name].grad = None
        elbo.loss_and_grads(model, uniform)
        grads.append(torch.stack([store["low"].grad, store["high"].grad]))
    assert_mean(torch.stack(grads), exact)


def test_the_half_line_is_told_by_its_bound():
    assert constraints.positive.lower_bound == 0
    assert constraints.nonnegative.lower_bound == 0

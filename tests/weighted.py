"""Pyro's losses with a weight, and a model and a guide whose KL is 0.818."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, autoguide
from support import LOSSES, assert_mean
from torch import Tensor

from pyro_elbo import BetaELBOMixin

PYRO_LOSSES = [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO]
PARTICLES = {"num_particles": 50, "vectorize_particles": True}
E_LOG_P = -0.5 * math.log(2 * math.pi) - 0.5 * (0.25 + 1)
E_LOG_Q = -0.5 * math.log(2 * math.pi * math.e) - math.log(0.5)
KL = E_LOG_Q - E_LOG_P


def mixed(parent):
    """One of Pyro's losses, with a weight."""
    return type(f"Beta{parent.__name__}", (BetaELBOMixin, parent), {})


ALL_LOSSES = LOSSES + [mixed(parent) for parent in PYRO_LOSSES]

every_loss = pytest.mark.parametrize("cls", ALL_LOSSES, ids=lambda cls: cls.__name__)
loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def make(cls, **kwargs):
    """A loss that enumerates where there is something to enumerate, and is silent where not."""
    if issubclass(cls, TraceEnum_ELBO):
        kwargs["strict_enumeration_warning"] = False
    return cls(**kwargs)


def model():
    return pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def guide():
    return pyro.sample("z", dist.Normal(torch.ones(()), 0.5))


def moving_guide(reparameterised=True):
    """The guide with parameters, and these."""
    parameters = pyro.param("loc", torch.tensor(1.0)), pyro.param("scale", torch.tensor(0.5))

    def program():
        fn = dist.Normal(pyro.param("loc"), pyro.param("scale"))
        pyro.sample("z", fn.has_rsample_(reparameterised))

    return program, parameters


def losses(elbo, model, guide, *args, count=60, seed=0):
    """Independent evaluations of a loss."""
    pyro.set_rng_seed(seed)
    return torch.tensor([elbo.loss(model, guide, *args) for _ in range(count)])


def losses_and_grads(elbo, model, guide, parameters, count=60):
    """The same with the gradient of each parameter of the store."""
    pyro.set_rng_seed(0)
    values, rows = [], []
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = None
        values.append(elbo.loss_and_grads(model, guide))
        rows.append([parameter.grad.clone() for parameter in parameters])
    return torch.tensor(values), [torch.stack(column) for column in zip(*rows, strict=True)]


def assert_mean_is_one_of(samples: Tensor, *values: float) -> None:
    """The mean is what Pyro gave when the row was measured, or what is right."""
    errors = []
    for value in values:
        try:
            return assert_mean(samples, torch.tensor(value))
        except AssertionError as error:
            errors.append(str(error))
    raise AssertionError(errors)


def auto_guide(cls, model, loc=1.0, **kwargs):
    """An AutoGuide that starts at one value of z, and has run once."""
    values = {"z": torch.as_tensor(loc)}
    guide = cls(model, init_loc_fn=autoguide.init_to_value(values=values), **kwargs)
    guide()
    return guide


def vector():
    """Two independent entries of z in one event."""
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def auto_low_rank(program):
    """Its covariance is scale^2 (1 + W W'), and its scale starts at init_scale / sqrt(2)."""
    auto = auto_guide(
        autoguide.AutoLowRankMultivariateNormal, program, torch.ones(2), init_scale=0.5**0.5
    )
    torch.nn.init.zeros_(auto.cov_factor)
    return auto


def auto_iaf(program):
    """An affine flow whose network says N(1, 0.5), whatever goes in."""
    auto = autoguide.AutoIAFNormal(program, hidden_dim=[3])
    auto()
    for parameter in auto.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        bias = torch.tensor([1.0, 1.0, math.log(0.5), math.log(0.5)])
        auto.get_parameter("transform.0.arn.layers.1.bias").copy_(bias)
    return auto


def auto_list(program):
    auto = autoguide.AutoGuideList(program)
    start = autoguide.init_to_value(values={"z": torch.ones(2)})
    auto.append(autoguide.AutoNormal(program, init_loc_fn=start, init_scale=0.5))
    return auto


def starting_at_one(name):
    cls = getattr(autoguide, name)
    return lambda program: auto_guide(cls, program, torch.ones(2), init_scale=0.5)


AUTOGUIDES = {
    "AutoNormal": starting_at_one("AutoNormal"),
    "AutoDiagonalNormal": starting_at_one("AutoDiagonalNormal"),
    "AutoMultivariateNormal": starting_at_one("AutoMultivariateNormal"),
    "AutoLowRankMultivariateNormal": auto_low_rank,
    "AutoDelta": lambda program: auto_guide(autoguide.AutoDelta, program, torch.ones(2)),
    "AutoGuideList": auto_list,
    "AutoIAFNormal": auto_iaf,
}

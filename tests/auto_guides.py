"""AutoGuides by name, away from their start, and their losses and gradients at a seed."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
    AutoStructured,
    init_to_feasible,
)
from support import assert_close, assert_mean

from pyro_elbo import BetaELBOMixin

of_samples = pytest.mark.parametrize(
    "vectorize",
    [
        pytest.param(False, marks=pytest.mark.slow, id="sequential"),
        pytest.param(True, id="vectorised"),
    ],
)
"""Means of samples: many at a time in `make test`, one after another in `make check` too."""


class BetaTrace_ELBO(BetaELBOMixin, Trace_ELBO):
    pass


def _feasible(cls, **kwargs):
    """A messenger, whose start is else the prior's mean (infinite for HalfCauchy)."""
    return lambda model: cls(model, init_loc_fn=init_to_feasible, **kwargs)


def _structured(conditionals, dependencies="linear"):
    return lambda model: AutoStructured(model, conditionals=conditionals, dependencies=dependencies)


LAPLACE = "AutoLaplaceApproximation"
DELTAS = ("AutoDelta", "AutoStructured of deltas")
GUIDES = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": lambda model: AutoLowRankMultivariateNormal(model, rank=2),
    "AutoIAFNormal": lambda model: AutoIAFNormal(model, hidden_dim=[32]),
    "AutoStructured of mvn": _structured("mvn"),
    "AutoStructured of normals": _structured("normal"),
    "AutoStructured of deltas": _structured("delta"),
    "AutoGaussian": AutoGaussian,
    "AutoNormalMessenger": _feasible(AutoNormalMessenger),
    "AutoHierarchicalNormalMessenger": _feasible(
        AutoHierarchicalNormalMessenger, hierarchical_sites=["z", "gamma", "weights"]
    ),
    "AutoRegressiveMessenger": _feasible(AutoRegressiveMessenger),
    "AutoDelta": AutoDelta,
    LAPLACE: AutoLaplaceApproximation,
}


def listed(*parts):
    """A list of guides: pairs of a class and the names of its sites, and hand-written guides."""

    def build(model):
        guide = AutoGuideList(model)
        for part in parts:
            if isinstance(part, tuple):
                cls, names = part
                part = cls(poutine.block(model, expose=names))
            guide.append(part)
        return guide

    return build


def with_discrete(cls, *names):
    """A list of a guide for the named sites and one for the discrete site ``c``."""
    return listed((cls, list(names)), (AutoDiscreteParallel, ["c"]))


def make(build, model, step=0.1):
    """A guide that has run once, its parameters moved from where they start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = build(model)
    guide()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(step * torch.randn_like(parameter))
    return guide


def evaluate(elbo, model, guide, seed):
    """The loss and the gradients of one evaluation, as one vector."""
    guide.zero_grad()
    pyro.set_rng_seed(seed)
    loss = elbo.loss_and_grads(model, guide)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in guide.parameters()]
    return torch.cat([torch.tensor([loss]), *(grad.flatten() for grad in grads)])


def assert_same(actual, expected):
    """Equal to rounding, relative to the largest entry."""
    assert_close(actual, expected, expected.abs().max(), ulps=1024)


def assert_same_mean(losses, model, guide, count=40):
    """Two losses have the same mean and mean gradients, each pair of evaluations at one seed."""
    rows = [[evaluate(elbo, model, guide, seed) for elbo in losses] for seed in range(count)]
    ours, sampled = (torch.stack(column) for column in zip(*rows, strict=True))
    difference = ours - sampled
    rounding = 1024 * torch.finfo(sampled.dtype).eps * sampled.abs().max()
    difference = difference.where(difference.abs() > rounding, torch.zeros(()))
    assert_mean(difference, torch.zeros_like(difference[0]))

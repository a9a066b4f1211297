"""A mixture of Gaussians whose assignments are summed out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor
from torch.distributions import biject_to, constraints

from .workload import ByHand, Workload, auto_normal, generator, locs_and_scales, sampled

__all__ = ["COMPONENTS", "FEATURES", "NUM_DATA", "data", "gaussian_mixture"]

NUM_DATA, COMPONENTS, FEATURES = 1_000, 5, 2


def data() -> Tensor:
    """Points around five centres."""
    rng = generator()
    centres = 4 * torch.randn(COMPONENTS, FEATURES, generator=rng)
    assignment = torch.randint(0, COMPONENTS, (NUM_DATA,), generator=rng)
    return centres[assignment] + torch.randn(NUM_DATA, FEATURES, generator=rng)


@config_enumerate
def model(x: Tensor) -> None:
    """Weights, a common scale, locations, and an assignment for each datum."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(COMPONENTS)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("components", COMPONENTS):
        locs = pyro.sample("locs", dist.Normal(torch.zeros(FEATURES), 5.0).to_event(1))
    with pyro.plate("data", NUM_DATA):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[assignment], scale).to_event(1), obs=x)


def make_parameters() -> list[Tensor]:
    """Of the weights' logits by stick breaking, the log scale, and the locations."""
    return locs_and_scales((COMPONENTS - 1,), (), (COMPONENTS, FEATURES))


def loss(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Minus the sampled ELBO, without constants."""
    (sticks, log_scale, locs), entropy = sampled(parameters)
    to_simplex = biject_to(constraints.simplex)
    weights = to_simplex(sticks)
    prior = to_simplex.log_abs_det_jacobian(sticks, weights) - 0.5 * log_scale**2
    prior = prior - 0.5 * ((locs / 5) ** 2).sum()
    distance = (x - locs.unsqueeze(1)) * (-log_scale).exp()
    by_component = (-0.5 * distance * distance).sum(-1) + weights.log().unsqueeze(-1)
    likelihood = torch.logsumexp(by_component, 0).sum() - FEATURES * len(x) * log_scale
    return -(prior + likelihood + entropy)


def gaussian_mixture() -> Workload:
    """1,000 data, 5 components."""
    constant = COMPONENTS * FEATURES * math.log(5.0) - math.lgamma(COMPONENTS)
    constant += 0.5 * NUM_DATA * FEATURES * math.log(2 * math.pi)
    constant -= 0.5 * (COMPONENTS - 1) * math.log(2 * math.pi)
    return Workload(
        "gaussian_mixture",
        model,
        lambda: auto_normal(poutine.block(model, hide=["assignment"])),
        (data(),),
        ByHand(make_parameters, loss, constant),
        enumerates=True,
    )

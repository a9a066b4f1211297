"""Eight schools: the effects of coaching in parallel experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .workload import ByHand, Workload, auto_normal, locs_and_scales, sampled

__all__ = ["EFFECTS", "ERRORS", "eight_schools"]

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
NUM_SCHOOLS = len(EFFECTS)


def model(y: Tensor, error: Tensor) -> None:
    """Each school's effect is drawn around a common one."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("schools", NUM_SCHOOLS):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, error), obs=y)


def make_parameters() -> list[Tensor]:
    """Of mu, log tau and theta."""
    return locs_and_scales((), (), (NUM_SCHOOLS,))


def loss(parameters: Sequence[Tensor], y: Tensor, error: Tensor) -> Tensor:
    """Minus the sampled ELBO, without constants."""
    (mu, log_tau, theta), entropy = sampled(parameters)
    tau = log_tau.exp()
    prior = -0.5 * (mu / 5) ** 2 - 0.5 * (tau / 5) ** 2 + log_tau
    effects = (-0.5 * ((theta - mu) / tau) ** 2 - log_tau).sum()
    likelihood = (-0.5 * ((y - theta) / error) ** 2).sum()
    return -(prior + effects + likelihood + entropy)


def eight_schools() -> Workload:
    """10 latents in 3 sites."""
    y, error = torch.tensor(EFFECTS), torch.tensor(ERRORS)
    normalisers = 2 * math.log(5.0) - math.log(2.0) + float(error.log().sum())
    constant = normalisers + 0.5 * NUM_SCHOOLS * math.log(2 * math.pi)
    return Workload(
        "eight_schools",
        model,
        lambda: auto_normal(model),
        (y, error),
        ByHand(make_parameters, loss, constant),
    )

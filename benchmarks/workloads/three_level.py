"""A hierarchical regression: repeats in subjects in groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .workload import ByHand, Workload, auto_normal, generator, locs_and_scales, sampled

__all__ = ["GROUPS", "REPEATS", "SUBJECTS", "data", "three_level"]

GROUPS, SUBJECTS, REPEATS = 10, 20, 5


def data() -> tuple[Tensor, Tensor]:
    """A covariate and an answer for each repeat."""
    rng = generator()
    shape = (REPEATS, SUBJECTS, GROUPS)
    return torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)


def model(x: Tensor, y: Tensor) -> None:
    """9 latent sites and the data."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    group_scale = pyro.sample("group_scale", dist.HalfNormal(2.0))
    subject_scale = pyro.sample("subject_scale", dist.HalfNormal(2.0))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    slope_scale = pyro.sample("slope_scale", dist.HalfNormal(1.0))
    with pyro.plate("groups", GROUPS, dim=-1):
        level = pyro.sample("level", dist.Normal(mu, group_scale))
        group_slope = pyro.sample("group_slope", dist.Normal(slope, slope_scale))
        with pyro.plate("subjects", SUBJECTS, dim=-2):
            subject = pyro.sample("subject", dist.Normal(level, subject_scale))
            with pyro.plate("repeats", REPEATS, dim=-3):
                pyro.sample("y", dist.Normal(subject + group_slope * x, noise), obs=y)


def make_parameters() -> list[Tensor]:
    """In the order of the sites."""
    return locs_and_scales(*[()] * 6, (GROUPS,), (GROUPS,), (SUBJECTS, GROUPS))


def kernel(value: Tensor, loc: Tensor | float, log_scale: Tensor) -> Tensor:
    """The log density of normals without their constants, in total."""
    return (-0.5 * ((value - loc) / log_scale.exp()) ** 2 - log_scale).sum()


def half_normal(log_value: Tensor, scale: float) -> Tensor:
    """The log density of a half-normal's logarithm without its constants."""
    return -0.5 * (log_value.exp() / scale) ** 2 + log_value


def loss(parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Minus the sampled ELBO, without constants."""
    values, entropy = sampled(parameters)
    mu, group, subject, noise, slope, slope_scale, level, group_slope, subjects = values
    joint = -0.5 * (mu / 5) ** 2 - 0.5 * slope**2 + half_normal(slope_scale, 1.0)
    joint = joint + half_normal(group, 2.0) + half_normal(subject, 2.0) + half_normal(noise, 2.0)
    joint = joint + kernel(level, mu, group) + kernel(group_slope, slope, slope_scale)
    joint = joint + kernel(subjects, level, subject)
    joint = joint + kernel(y, subjects + group_slope * x, noise)
    return -(joint + entropy)


def three_level() -> Workload:
    """10 sites in 3 nested plates."""
    size = GROUPS * SUBJECTS * REPEATS
    constant = math.log(5.0) + 3 * math.log(2.0) - 4 * math.log(2.0)
    constant += 0.5 * size * math.log(2 * math.pi)
    by_hand = ByHand(make_parameters, loss, constant)
    arguments = data()
    return Workload(
        "three_level",
        model,
        lambda: auto_normal(model),
        arguments,
        by_hand,
        max_plate_nesting=3,
    )

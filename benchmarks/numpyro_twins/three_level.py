"""A hierarchical regression: repeats in subjects in groups."""

from __future__ import annotations

from typing import Any

import numpyro
import numpyro.distributions as dist

from .guides import auto_normal

__all__ = ["program"]


def model(x: Any, y: Any) -> None:
    """9 latent sites and the data."""
    repeats, subjects, groups = x.shape
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    group_scale = numpyro.sample("group_scale", dist.HalfNormal(2.0))
    subject_scale = numpyro.sample("subject_scale", dist.HalfNormal(2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    slope_scale = numpyro.sample("slope_scale", dist.HalfNormal(1.0))
    with numpyro.plate("groups", groups, dim=-1):
        level = numpyro.sample("level", dist.Normal(mu, group_scale))
        group_slope = numpyro.sample("group_slope", dist.Normal(slope, slope_scale))
        with numpyro.plate("subjects", subjects, dim=-2):
            subject = numpyro.sample("subject", dist.Normal(level, subject_scale))
            with numpyro.plate("repeats", repeats, dim=-3):
                numpyro.sample("y", dist.Normal(subject + group_slope * x, noise), obs=y)


def program() -> tuple[Any, Any]:
    """Model and guide."""
    return model, auto_normal(model)

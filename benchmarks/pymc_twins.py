"""Two of the workloads as PyMC models."""

from __future__ import annotations

from typing import Any

import pymc as pm

__all__ = ["eight_schools", "logistic"]


def eight_schools(y: Any, error: Any) -> pm.Model:
    """Each school's effect is drawn around a common one."""
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 5.0)
        theta = pm.Normal("theta", mu, tau, shape=len(y))
        pm.Normal("y", theta, error, observed=y)
    return model


def logistic(x: Any, y: Any) -> pm.Model:
    """Logistic regression on all data."""
    with pm.Model() as model:
        weights = pm.Normal("w", 0.0, 1.0, shape=x.shape[-1])
        bias = pm.Normal("b", 0.0, 1.0)
        pm.Bernoulli("y", logit_p=pm.math.dot(x, weights) + bias, observed=y)
    return model

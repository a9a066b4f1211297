"""Survival with frailty: `poutine.mask` parts deaths from censored times, and drops padding."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints

from .program import Program, wave

PATIENTS = 6


def model(x, times, died, present):
    shape = pyro.param("shape", torch.tensor(1.3), constraints.positive)
    effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
    with pyro.plate("patients", PATIENTS), poutine.mask(mask=present):
        frailty = pyro.sample("frailty", dist.Gamma(2.0, 2.0))
        scale = (frailty * (effect * x).exp()) ** (-1 / shape)
        with poutine.mask(mask=died):
            pyro.sample("death", dist.Weibull(scale, shape), obs=times)
        with poutine.mask(mask=~died):
            pyro.factor("survival", -((times / scale) ** shape))


def guide(x, times, died, present):
    loc = pyro.param("loc", torch.tensor(0.5))
    scale = pyro.param("scale", torch.tensor(0.4), constraints.positive)
    concentration = wave(PATIENTS, scale=0.8, shift=2.5)
    concentration = pyro.param("concentration", concentration, constraints.positive)
    rate = pyro.param("rate", torch.tensor(1.8), constraints.positive)
    pyro.sample("effect", dist.Normal(loc, scale))
    with pyro.plate("patients", PATIENTS), poutine.mask(mask=present):
        pyro.sample("frailty", dist.Gamma(concentration, rate))


def build() -> Program:
    times = wave(PATIENTS, scale=0.6, shift=1.0)
    died = torch.tensor([True, True, False, True, False, True])
    return Program(model, guide, (wave(PATIENTS), times, died, torch.arange(PATIENTS) < 5))

"""Factor analysis: modules with parameters of their own, an amortised guide, subsampled data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from .program import Program, wave

NUM_DATA, SUBSAMPLE, FEATURES, FACTORS = 5, 3, 3, 2


class Model(PyroModule):
    def __init__(self):
        super().__init__("factor_analysis_model")
        self.loadings = PyroParam(wave(FACTORS, FEATURES))
        self.bias = PyroParam(wave(FEATURES, scale=0.3))
        self.noise = PyroParam(wave(FEATURES, scale=0.2, shift=0.7), constraints.positive)

    def forward(self, data):
        with pyro.plate("data", NUM_DATA, SUBSAMPLE) as index:
            prior = dist.Normal(torch.zeros(FACTORS), 1.0).to_event(1)
            factors = pyro.sample("factors", prior)
            loc = factors @ self.loadings + self.bias
            pyro.sample("x", dist.Normal(loc, self.noise).to_event(1), obs=data[index])


class Guide(PyroModule):
    def __init__(self):
        super().__init__("factor_analysis_guide")
        self.weight = PyroParam(wave(FEATURES, FACTORS, scale=0.5))
        self.scale = PyroParam(torch.tensor([0.5, 0.7]), constraints.positive)

    def forward(self, data):
        with pyro.plate("data", NUM_DATA, SUBSAMPLE) as index:
            factors = dist.Normal(data[index] @ self.weight, self.scale)
            pyro.sample("factors", factors.to_event(1))


def build() -> Program:
    return Program(Model(), Guide(), (wave(NUM_DATA, FEATURES, scale=1.3),))

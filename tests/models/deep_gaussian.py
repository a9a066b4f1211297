"""Deep latent Gaussian model: three layers, with guides in either direction."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from .program import Program, wave

NUM_DATA, FEATURES, UNITS, LAYERS = 3, 3, 2, 3
TOP = LAYERS - 1


def linear(num_in: int, num_out: int):
    layer = PyroModule[nn.Linear](num_in, num_out)
    layer.weight.data = wave(num_out, num_in, scale=0.9)
    layer.bias.data = wave(num_out, scale=0.4).flip(0)
    return layer


def sample(layer: int, loc, scale):
    return pyro.sample(f"z{layer}", dist.Normal(loc, scale).to_event(1))


class Model(PyroModule):
    """The top layer first, each the mean of the one below."""

    def __init__(self):
        super().__init__("deep_gaussian_model")
        self.layers = PyroModule[nn.ModuleList]([linear(UNITS, UNITS) for _ in range(TOP)])
        self.decoder = linear(UNITS, FEATURES)

    def forward(self, data):
        with pyro.plate("data", NUM_DATA):
            z = sample(TOP, torch.zeros(UNITS), 1.0)
            for layer in reversed(range(TOP)):
                z = sample(layer, self.layers[layer](z).tanh(), 0.7)
            pyro.sample("x", dist.Normal(self.decoder(z), 0.6).to_event(1), obs=data)


class BottomUp(PyroModule):
    """From the data upwards: each site's parent in the model is its child in the guide."""

    def __init__(self):
        super().__init__("deep_gaussian_guide")
        sizes = [FEATURES] + [UNITS] * TOP
        self.layers = PyroModule[nn.ModuleList]([linear(size, UNITS) for size in sizes])

    def forward(self, data):
        with pyro.plate("data", NUM_DATA):
            below = data
            for layer, encoder in enumerate(self.layers):
                below = sample(layer, encoder(below).tanh(), 0.4)


class TopDown(PyroModule):
    """In the model's order: each site depends on the data and on the one above."""

    def __init__(self):
        super().__init__("deep_gaussian_guide")
        self.encoders = PyroModule[nn.ModuleList]([linear(FEATURES, UNITS) for _ in range(LAYERS)])
        self.layers = PyroModule[nn.ModuleList]([linear(UNITS, UNITS) for _ in range(TOP)])

    def forward(self, data):
        with pyro.plate("data", NUM_DATA):
            z = sample(TOP, self.encoders[TOP](data).tanh(), 0.4)
            for layer in reversed(range(TOP)):
                loc = self.encoders[layer](data) + 0.5 * self.layers[layer](z)
                z = sample(layer, loc.tanh(), 0.4)


def build(guide: type[PyroModule]) -> Program:
    return Program(Model(), guide(), (wave(NUM_DATA, FEATURES),))

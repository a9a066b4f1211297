"""Semi-supervised VAE: the label is observed for some data, and discrete and latent for others."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from .program import How, Program, guide_infer, reference_of, wave

FEATURES, LABELS, UNITS = 3, 3, 2
UNLABELLED, LABELLED = 3, 2


class Conditional(nn.Module):
    """A linear map of the input, with a bias for each label."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.weight = nn.Parameter(wave(num_out, num_in, scale=0.7))
        self.bias = nn.Parameter(wave(LABELS, num_out, scale=0.8).flip(0))

    def forward(self, inputs, label):
        return inputs @ self.weight.T + self.bias[label]


def build(how: How = "sampled") -> Program:
    """The unlabelled data's labels are sampled or enumerated."""
    decoder = Conditional(UNITS, FEATURES)
    encoder = Conditional(FEATURES, UNITS)
    prior = dist.Normal(torch.zeros(UNITS), 1.0).to_event(1)

    def decode(z, y):
        return dist.Bernoulli(logits=decoder(z, y)).to_event(1)

    def encode(x, y):
        scale = pyro.param("log_scale", torch.tensor([-0.5, -0.9])).exp()
        return dist.Normal(encoder(x, y), scale).to_event(1)

    def model(unlabelled, labelled, labels):
        pyro.module("decoder", decoder)
        label = dist.Categorical(torch.tensor([0.2, 0.3, 0.5]))
        with pyro.plate("unlabelled", UNLABELLED):
            y = pyro.sample("y", label)
            z = pyro.sample("z", prior)
            pyro.sample("x", decode(z, y), obs=unlabelled)
        with pyro.plate("labelled", LABELLED):
            y = pyro.sample("known_y", label, obs=labels)
            z = pyro.sample("known_z", prior)
            pyro.sample("known_x", decode(z, y), obs=labelled)

    def guide(unlabelled, labelled, labels):
        pyro.module("encoder", encoder)
        classifier = pyro.param("classifier", wave(FEATURES, LABELS))
        with pyro.plate("unlabelled", UNLABELLED):
            label = dist.Categorical(logits=unlabelled @ classifier)
            y = pyro.sample("y", label, infer=guide_infer(how))
            pyro.sample("z", encode(unlabelled, y))
        with pyro.plate("labelled", LABELLED):
            pyro.sample("known_z", encode(labelled, labels))

    pixels = (wave(UNLABELLED + LABELLED, FEATURES) > 0).to(torch.get_default_dtype())
    args = (pixels[:UNLABELLED], pixels[UNLABELLED:], torch.tensor([2, 0]))
    return Program(model, guide, args, reference_of(how))

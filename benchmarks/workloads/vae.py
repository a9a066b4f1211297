"""A variational autoencoder of binary images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from .workload import ByHand, Workload, generator

__all__ = ["NUM_PIXELS", "NUM_UNITS", "images", "layers", "multilayer", "vae", "vae_wide"]

NUM_PIXELS, NUM_UNITS = 784, 20


def images(num: int) -> Tensor:
    """Binary images, three pixels in ten of them set."""
    return (torch.rand(num, NUM_PIXELS, generator=generator()) < 0.3).float()


def layers(*sizes: int) -> nn.Sequential:
    """A multilayer perceptron with softplus between its layers."""
    modules: list[nn.Module] = []
    for num_in, num_out in pairwise(sizes):
        modules += [nn.Linear(num_in, num_out), nn.Softplus()]
    return nn.Sequential(*modules[:-1])


def multilayer(parameters: Sequence[Tensor], values: Tensor) -> Tensor:
    """The same from a list of its weights and biases."""
    for i in range(0, len(parameters), 2):
        values = functional.linear(values, parameters[i], parameters[i + 1])
        if i + 2 < len(parameters):
            values = functional.softplus(values)
    return values


def networks(hidden: Sequence[int]) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = layers(NUM_PIXELS, *hidden, 2 * NUM_UNITS)
        return encoder, layers(NUM_UNITS, *reversed(hidden), NUM_PIXELS)


def autoencoder(name: str, hidden: Sequence[int], batch: int) -> Workload:
    """The workload of so many hidden units."""
    encoder, decoder = networks(hidden)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), NUM_UNITS), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def make_parameters() -> list[Tensor]:
        return [p.detach().clone() for net in networks(hidden) for p in net.parameters()]

    def loss(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        half = len(parameters) // 2
        loc, log_scale = multilayer(parameters[:half], x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        logits = multilayer(parameters[half:], z)
        error = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        return error + 0.5 * (loc * loc + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()

    return Workload(name, model, lambda: guide, (images(batch),), ByHand(make_parameters, loss))


def vae(batch: int = 128) -> Workload:
    """784 pixels, 400 hidden units, 20 latents."""
    return autoencoder("vae", [400], batch)


def vae_wide(batch: int = 512) -> Workload:
    """784 pixels, twice 512 hidden units, 20 latents."""
    return autoencoder("vae_wide", [512, 512], batch)

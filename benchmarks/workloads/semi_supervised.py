"""A semi-supervised VAE: the class of some images is known, and summed out for the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

from .vae import NUM_PIXELS, NUM_UNITS, images, layers, multilayer
from .workload import ByHand, Workload, generator

__all__ = ["CLASSES", "HIDDEN", "LABELLED", "UNLABELLED", "data", "semi_supervised"]

CLASSES, HIDDEN, LABELLED, UNLABELLED = 10, 256, 50, 50
NUM_TENSORS = 4


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Images without a class, images with one, and their classes as indicators."""
    x = images(UNLABELLED + LABELLED)
    classes = torch.randint(0, CLASSES, (LABELLED,), generator=generator())
    return x[:UNLABELLED], x[UNLABELLED:], functional.one_hot(classes, CLASSES).float()


def networks() -> nn.ModuleDict:
    """A classifier, an encoder and a decoder, the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleDict(
            {
                "classifier": layers(NUM_PIXELS, HIDDEN, CLASSES),
                "encoder": layers(NUM_PIXELS + CLASSES, HIDDEN, 2 * NUM_UNITS),
                "decoder": layers(NUM_UNITS + CLASSES, HIDDEN, NUM_PIXELS),
            }
        )


def joined(first: Tensor, second: Tensor) -> Tensor:
    """Two tensors side by side, their batches broadcast."""
    batch = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*batch, -1), second.expand(*batch, -1)], -1)


def bounds(parameters: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The ELBO of each image given its class, without the class's prior."""
    encoder, decoder = parameters[NUM_TENSORS : 2 * NUM_TENSORS], parameters[2 * NUM_TENSORS :]
    loc, log_scale = multilayer(encoder, joined(x, y)).chunk(2, -1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    logits = multilayer(decoder, joined(z, y))
    target = x.expand(logits.shape)
    error = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
    kl = 0.5 * (loc * loc + (2 * log_scale).exp() - 1 - 2 * log_scale).sum(-1)
    return -error - kl


def loss(parameters: Sequence[Tensor], unlabelled: Tensor, labelled: Tensor, y: Tensor) -> Tensor:
    """Minus the sampled ELBO, without the classes' prior."""
    log_q = multilayer(parameters[:NUM_TENSORS], unlabelled).log_softmax(-1)
    classes = torch.eye(CLASSES).unsqueeze(1)
    each = bounds(parameters, unlabelled, classes) - log_q.T
    return -(log_q.T.exp() * each).sum() - bounds(parameters, labelled, y).sum()


def semi_supervised() -> Workload:
    """50 images with a class and 50 without, 10 classes."""
    nets = networks()
    prior = dist.OneHotCategorical(torch.ones(CLASSES) / CLASSES)

    def decode(z: Tensor, y: Tensor) -> Any:
        return dist.Bernoulli(logits=nets["decoder"](joined(z, y))).to_event(1)

    def encode(x: Tensor, y: Tensor) -> Any:
        loc, log_scale = nets["encoder"](joined(x, y)).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def latent_prior(num: int) -> Any:
        return dist.Normal(torch.zeros(num, NUM_UNITS), 1.0).to_event(1)

    def model(unlabelled: Tensor, labelled: Tensor, y: Tensor) -> None:
        pyro.module("networks", nets)
        with pyro.plate("unlabelled", len(unlabelled)):
            drawn = pyro.sample("class", prior)
            z = pyro.sample("z", latent_prior(len(unlabelled)))
            pyro.sample("x", decode(z, drawn), obs=unlabelled)
        with pyro.plate("labelled", len(labelled)):
            pyro.sample("known_class", prior, obs=y)
            z = pyro.sample("known_z", latent_prior(len(labelled)))
            pyro.sample("known_x", decode(z, y), obs=labelled)

    def guide(unlabelled: Tensor, labelled: Tensor, y: Tensor) -> None:
        pyro.module("networks", nets)
        with pyro.plate("unlabelled", len(unlabelled)):
            classes = dist.OneHotCategorical(logits=nets["classifier"](unlabelled))
            drawn = pyro.sample("class", classes, infer={"enumerate": "parallel"})
            pyro.sample("z", encode(unlabelled, drawn))
        with pyro.plate("labelled", len(labelled)):
            pyro.sample("known_z", encode(labelled, y))

    def make_parameters() -> list[Tensor]:
        return [p.detach().clone() for p in networks().parameters()]

    constant = (UNLABELLED + LABELLED) * float(torch.tensor(float(CLASSES)).log())
    return Workload(
        "semi_supervised",
        model,
        lambda: guide,
        data(),
        ByHand(make_parameters, loss, constant),
        enumerates=True,
    )

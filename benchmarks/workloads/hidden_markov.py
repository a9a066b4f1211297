"""A hidden Markov model whose states are summed out in parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

from .workload import ByHand, Workload, auto_normal, generator, locs_and_scales, sampled

__all__ = ["LENGTH", "SEQUENCES", "STATES", "data", "hidden_markov"]

STATES, LENGTH, SEQUENCES = 3, 20, 50


def data() -> Tensor:
    """Sequences that jump between levels, by step and sequence."""
    rng = generator()
    levels = torch.randint(0, STATES, (LENGTH // 4, SEQUENCES), generator=rng)
    noise = torch.randn(LENGTH, SEQUENCES, generator=rng)
    return 3.0 * (levels.repeat_interleave(4, 0) - 1) + noise


@config_enumerate
def model(x: Tensor) -> None:
    """Transitions, and a location for each state, are the latents that are not summed out."""
    with pyro.plate("states", STATES):
        logits = pyro.sample("logits", dist.Normal(torch.zeros(STATES), 1.0).to_event(1))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("sequences", SEQUENCES, dim=-1):
        state: Any = 0
        for t in pyro.markov(range(LENGTH)):
            transition = dist.Categorical(logits=Vindex(logits)[..., state, :])
            state = pyro.sample(f"state_{t}", transition)
            pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[..., state], 1.0), obs=x[t])


def make_parameters() -> list[Tensor]:
    """Of the transitions' logits and the locations."""
    return locs_and_scales((STATES, STATES), (STATES,))


def loss(parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Minus the sampled ELBO, the likelihood by the forward algorithm, without constants."""
    (logits, locs), entropy = sampled(parameters)
    prior = -0.5 * (logits**2).sum() - 0.5 * ((locs / 3) ** 2).sum()
    transition = logits.log_softmax(-1)
    emission = -0.5 * (x.unsqueeze(-1) - locs) ** 2
    forward = transition[0] + emission[0]
    for t in range(1, LENGTH):
        forward = torch.logsumexp(forward.unsqueeze(-1) + transition, -2) + emission[t]
    return -(prior + torch.logsumexp(forward, -1).sum() + entropy)


def hidden_markov() -> Workload:
    """3 states, 20 steps, 50 sequences."""
    globals_of = pyro.poutine.block(model, expose=["logits", "locs"])
    constant = STATES * math.log(3.0) + 0.5 * LENGTH * SEQUENCES * math.log(2 * math.pi)
    return Workload(
        "hidden_markov",
        model,
        lambda: auto_normal(globals_of),
        (data(),),
        ByHand(make_parameters, loss, constant),
        enumerates=True,
    )

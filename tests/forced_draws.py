"""The exact mean of an estimator: every outcome of its draws in turn, weighted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from programs import VALUES, Program, Site
from pyro.infer.enum import iter_discrete_traces
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

PARTICLES = "num_particles_vectorized"
HERMITE = (torch.tensor([-1.0, 0.0, 1.0]).double() * 3**0.5, torch.tensor([1, 4, 1]).double() / 6)
TWO_POINT = (torch.tensor([-1.0, 1.0]).double(), torch.tensor([0.5, 0.5]).double())


class ForcedDraws(Messenger):
    """Replaces every draw by a chosen outcome, and keeps the probability of the choices.

    A normal draw is ``loc + scale * node``: of a three-point quadrature (exact to the fifth degree)
    where it is not reparameterised, of a two-point one (exact to the third) where it is, or fixed.

    Args:
        program: The program.
        choices: One choice for each draw; 0 where they run out.
    """

    def __init__(self, program: Program, choices: Sequence[int] = ()) -> None:
        super().__init__()
        self.names = {
            site.called(step): (site, step)
            for site in program.sites.values()
            for step in program.steps(site)
        }
        self.program, self.choices = program, choices
        self.sizes: list[int] = []
        self.weight = 1.0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"]:
            return
        if msg["name"] == PARTICLES:
            return
        if site_is_subsample(msg):
            value = torch.tensor(self.program.indices[msg["name"]])
        elif self.names[msg["name"]][0].is_discrete:
            value = self._discrete(msg["fn"], *self.names[msg["name"]])
        else:
            value = self._normal(msg, *self.names[msg["name"]])
        msg["value"], msg["done"] = value, True

    def _choose(self, shape: Any, size: int) -> Tensor:
        chosen = []
        for _ in range(math.prod(shape)):
            place = len(self.sizes)
            chosen.append(self.choices[place] if place < len(self.choices) else 0)
            self.sizes.append(size)
        return torch.tensor(chosen, dtype=torch.long).reshape(shape)

    def _discrete(self, fn: Any, site: Site, step: int) -> Tensor:
        chosen = self._choose(fn.batch_shape, VALUES[site.kind])
        value = chosen.double() if site.kind == "bernoulli" else chosen
        self.weight *= float(fn.log_prob(value).sum().exp())
        return value

    def _normal(self, msg: Any, site: Site, step: int) -> Tensor:
        fn, frames = msg["fn"], {f.name: f for f in msg["cond_indep_stack"] if f.vectorized}
        if fn.has_rsample and not self.program.two_point:
            noise = self._fixed(frames, site, step)
        else:
            nodes, weights = TWO_POINT if fn.has_rsample else HERMITE
            shape = [1] * max((-frame.dim for frame in frames.values()), default=0)
            for frame in frames.values():
                shape[frame.dim] = frame.size
            chosen = self._choose(shape, len(nodes))
            self.weight *= float(weights[chosen].prod())
            noise = nodes[chosen]
        value = fn.loc + fn.scale * noise
        value = value.exp() if site.kind == "lognormal" else value
        return value if fn.has_rsample else value.detach()

    def _fixed(self, frames: Any, site: Site, step: int) -> Tensor:
        first, second = (self.program.entries(site, step, n) for n in self.program.noise[site.name])
        if PARTICLES not in frames:
            return first
        missing = -frames[PARTICLES].dim - 1 - first.dim()
        return torch.stack([first, second]).reshape((2,) + (1,) * missing + first.shape)


def num_outcomes(program: Program) -> int:
    """How many outcomes the draws of one particle have."""
    guide = EnumMessenger(first_available_dim=-3)(program.guide)
    with ForcedDraws(program) as forced, torch.no_grad():
        list(iter_discrete_traces("flat", guide))
    return math.prod(forced.sizes)


def exact_mean(
    program: Program, evaluate: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mean of an evaluation over its draws, and the mean of its absolute value."""
    with ForcedDraws(program):
        evaluate()  # a loss may run once more where it meets a program
    with ForcedDraws(program) as forced:
        evaluate()
    mean: dict[str, Any] = {}
    size: dict[str, Any] = {}
    for choices in itertools.product(*map(range, forced.sizes)):
        with ForcedDraws(program, choices) as forced:
            result = evaluate()
        for name, value in result.items():
            mean[name] = mean.get(name, 0.0) + forced.weight * value
            size[name] = size.get(name, 0.0) + forced.weight * value.abs()
    return mean, size

"""Random small programs: every loss against the definition, sample by sample."""

from __future__ import annotations

import random
import warnings
from contextlib import ExitStack
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from support import LOSSES, assert_close, clear_gradients, gradients

from pyro_elbo import TraceGap_ELBO

NUM_PROGRAMS = 60
ULPS = 4096  # sums of some hundred terms, in another order
PLATES = {"a": (3, None, -1), "b": (4, 3, -3)}
FAMILIES = [
    lambda loc, scale: dist.Normal(loc, scale),
    lambda loc, scale: dist.Laplace(loc, scale),
    lambda loc, scale: dist.LogNormal(loc, scale),
    lambda loc, scale: dist.Gamma(1 + scale, 1 + loc**2),
]
SUPPORTS = [FAMILIES[:2], FAMILIES[2:]]


@dataclass
class RandomSite:
    name: str
    plates: frozenset
    fn: dict
    parents: dict
    handlers: dict


def random_handlers(rng, plates):
    sides = rng.choice([(), (), ("model", "guide"), ("model",), ("guide",)])
    mask = torch.rand(()) < 0.5
    if "a" in plates:
        mask = torch.rand(3) < 0.6
    handler = rng.choice([poutine.mask(mask=mask), poutine.scale(scale=rng.choice([0.5, 3.0]))])
    return dict.fromkeys(sides, handler)


class RandomProgram:
    """Up to four latents and two observed sites, in plates, in another order on each side."""

    def __init__(self, seed):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        names = [f"z{i}" for i in range(rng.randint(1, 4))]
        observed = [f"x{i}" for i in range(rng.randint(0, 2))]
        self.latents = names
        self.orders = {"model": names + observed, "guide": rng.sample(names, len(names))}
        plates = {n: frozenset(p for p in PLATES if rng.random() < 0.5) for n in names + observed}
        self.sites = {}
        for name in names + observed:
            family = rng.choice(SUPPORTS) if name in names else SUPPORTS[0]
            parents = {
                side: [
                    other
                    for other in order[: order.index(name)]
                    if other in names and plates[other] <= plates[name] and rng.random() < 0.5
                ]
                for side, order in self.orders.items()
                if name in order
            }
            fn = {side: rng.choice(family) for side in parents}
            handlers = random_handlers(rng, plates[name])
            self.sites[name] = RandomSite(name, plates[name], fn, parents, handlers)
        shift = {"model": 0.1, "guide": 0.4}
        self.parameters = {
            f"{side} {name} {part}": torch.tensor(shift[side] + value, requires_grad=True)
            for side, order in self.orders.items()
            for name in order
            for part, value in (("loc", 0.3), ("scale", 0.6))
        }
        self.beta = rng.choice(
            [0.0, 0.5, 1.0, 4.0, {n: rng.choice([0.0, 0.5, 3.0]) for n in names}]
        )

    def run(self, side):
        values = {}
        plates = {n: pyro.plate(n, s, subsample_size=m, dim=d) for n, (s, m, d) in PLATES.items()}
        for name in self.orders[side]:
            site = self.sites[name]
            loc = self.parameters[f"{side} {name} loc"]
            loc = loc + sum(0.5 * values[parent].tanh() for parent in site.parents[side])
            with ExitStack() as stack:
                for plate in sorted(site.plates):
                    stack.enter_context(plates[plate])
                if side in site.handlers:
                    stack.enter_context(site.handlers[side])
                fn = site.fn[side](loc, self.parameters[f"{side} {name} scale"])
                obs = torch.tensor(0.7) if name.startswith("x") else None
                values[name] = pyro.sample(name, fn, obs=obs)

    def model(self):
        self.run("model")

    def guide(self):
        self.run("guide")

    def weight(self, name):
        return self.beta[name] if isinstance(self.beta, dict) else self.beta

    def loss_by_definition(self, num_particles):
        total = torch.zeros(())
        for _ in range(num_particles):
            guide = poutine.trace(self.guide).get_trace()
            model = poutine.trace(poutine.replay(self.model, trace=guide)).get_trace()
            for trace, sign in ((model, 1), (guide, -1)):
                trace.compute_log_prob(lambda name, _: name in self.sites)
                for name in trace.nodes.keys() & self.sites.keys():
                    weight = self.weight(name) if name in self.latents else 1.0
                    if weight:
                        total = total + sign * weight * trace.nodes[name]["log_prob_sum"]
        return -total / num_particles


def evaluate(program, loss, seed=1):
    clear_gradients(program.parameters)
    pyro.set_rng_seed(seed)
    value = loss()
    if isinstance(value, torch.Tensor):
        if value.requires_grad:
            value.backward()
        value = float(value.detach())
    return value, gradients(program.parameters)


def assert_same(actual, expected, scale):
    assert_close(torch.tensor(actual[0]), torch.tensor(expected[0]), scale, ULPS)
    for name, gradient in expected[1].items():
        assert_close(actual[1][name], gradient, max(scale, float(gradient.abs().max())), ULPS)


def assert_laws(terms, scale):
    assert_close(terms.objective, terms.reconstruction - terms.weighted_kl, scale, ULPS)
    assert_close(terms.reconstruction_kl.elbo, terms.joint_entropy.elbo, scale, ULPS)
    for plate in {name for site in terms.sites.values() for name in site.plates}:
        if terms.indices[plate] is None:
            continue
        data = terms.per_datum(plate)
        outside = [site for site in terms.sites.values() if plate not in site.plates]
        for name in ("kl", "weighted_kl"):
            total = data.scale * getattr(data, name).sum()
            total = total + sum(getattr(site, name).sum() for site in outside)
            assert_close(total, getattr(terms, name), scale, ULPS)


@pytest.mark.parametrize("seed", range(NUM_PROGRAMS))
def test_a_random_program(seed):
    program = RandomProgram(seed)
    warnings.simplefilter("ignore", UserWarning)
    for kwargs in ({}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}):
        for cls in LOSSES:
            elbo = cls(beta=program.beta, max_plate_nesting=3, **kwargs)
            ours = evaluate(program, lambda e=elbo: e.loss_and_grads(program.model, program.guide))
            terms = elbo.terms
            scale = 4 * float(terms.reconstruction.abs() + terms.entropy.abs() + terms.kl.abs() + 1)
            assert_laws(terms, scale)
            if cls is not TraceGap_ELBO:
                continue
            if not kwargs.get("vectorize_particles"):
                size = kwargs.get("num_particles", 1)
                exact = evaluate(program, lambda n=size: program.loss_by_definition(n))
                assert_same(ours, exact, scale)
            if program.beta == 1.0:
                pyros = Trace_ELBO(max_plate_nesting=3, **kwargs).differentiable_loss
                exact = evaluate(program, lambda p=pyros: p(program.model, program.guide))
                assert_same(ours, exact, scale)

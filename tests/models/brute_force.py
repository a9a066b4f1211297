"""The bound and its gradient from the definition, where all latents are discrete."""

from __future__ import annotations

import itertools

import pyro
import torch
from pyro import poutine
from torch import Tensor

from .program import Program


def brute_force(program: Program, beta: float = 1.0) -> dict[str, Tensor]:
    """Minus the objective and its gradients, summed over all values of the guide's sites."""
    pyro.clear_param_store()
    latents = latents_of(poutine.trace(program.guide).get_trace(*program.args))
    names, sites = list(latents), list(latents.values())
    loss = torch.zeros(())
    for values in itertools.product(*map(values_of, sites)):
        loss = loss + weighted_cost(program, dict(zip(names, values, strict=True)), beta)
    parameters = dict(pyro.get_param_store().named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {"loss": loss.detach(), **dict(zip(parameters, gradients, strict=True))}


def latents_of(trace: poutine.Trace) -> dict[str, dict]:
    """The sites that a run of the guide samples, plates left out."""
    sites = {name: trace.nodes[name] for name in trace.stochastic_nodes}
    return {name: site for name, site in sites.items() if site["fn"].has_enumerate_support}


def values_of(site: dict) -> list[Tensor]:
    """Each value that the site can take, its plates included."""
    support = site["fn"].enumerate_support(expand=False).flatten()
    shape = site["value"].shape
    values = itertools.product(support, repeat=shape.numel())
    return [torch.stack(value).reshape(shape) for value in values]


def weighted_cost(program: Program, values: dict[str, Tensor], beta: float) -> Tensor:
    """The probability of the values under the guide, times their cost."""
    guide = poutine.trace(poutine.condition(program.guide, values)).get_trace(*program.args)
    model = poutine.trace(poutine.condition(program.model, values)).get_trace(*program.args)
    log_q = sum(guide.nodes[name]["fn"].log_prob(value).sum() for name, value in values.items())
    likelihood = model.log_prob_sum(lambda name, site: name not in values)
    prior = model.log_prob_sum(lambda name, site: name in values)
    return -log_q.exp() * (likelihood + beta * (prior - guide.log_prob_sum()))

r"""The path derivative: gradients of the guide through its samples alone.

:math:`\nabla_\phi E_q[\log p - \log q_\phi]` is the mean of a part that flows through the samples
and of the score :math:`-\nabla_\phi \log q_\phi(z)` at fixed samples, whose mean is 0. Leaving the
score out keeps the mean. Where q is the posterior, what is left is 0 for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..weighting import factor_of
from .cost import Cost
from .costs import SiteCosts, weighted_costs
from .sites import has_base
from .supports import moves
from .traces import sample_sites
from .tracing import is_messenger, trace_pair

__all__ = ["check_pathwise", "pair_at_leaves", "path_surrogate", "without_scores"]


def pair_at_leaves(model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Run the guide, then the guide and the model again at its samples as leaves of the graph.

    Both runs see the same noise (dropout too). Each site of the second guide trace whose sample is
    a leaf keeps the first sample, with the guide's graph, as ``site["sample"]``.
    """
    state = get_rng_state()
    if is_messenger(guide):
        first = trace_pair(model, guide, args, kwargs)[1]
    else:
        first = poutine.trace(guide).get_trace(*args, **kwargs)
    set_rng_state(state)
    leaves = _Leaves(first)
    model_trace, guide_trace = trace_pair(model, leaves(guide), args, kwargs)
    for name in leaves.names:
        guide_trace.nodes[name]["sample"] = first.nodes[name]["value"]
    return model_trace, guide_trace


class _Leaves(Messenger):
    """Replaces the samples of a guide by those of a trace, as leaves; its noise is drawn anyway."""

    def __init__(self, trace: Any) -> None:
        super().__init__()
        self.samples = {
            name: site["value"]
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        self.names: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self.samples or msg["is_observed"]:
            return
        if not msg["done"]:
            with torch.no_grad():
                msg["fn"](*msg["args"], **msg["kwargs"])
        msg["value"], msg["done"] = self.samples[name], True
        if not site_is_subsample(msg) and msg["value"].is_floating_point():
            msg["value"] = msg["value"].detach().requires_grad_()
            self.names.add(name)


def check_pathwise(sites: Sequence[SiteCosts], guide: Mapping[str, Any]) -> None:
    """Check that every density of the guide is that of reparameterised samples.

    Raises:
        UnsupportedSiteError: A site is not reparameterised, or is a factor; or its support moves.
    """
    for name, site in guide.items():
        if moves(site["fn"]):
            raise UnsupportedSiteError(
                name,
                "path_derivative leaves out the guide's score, whose mean is not 0 where "
                "parameters move the support",
                "use path_derivative=False, or a distribution whose support stays",
            )
        if site_is_factor(site):
            raise UnsupportedSiteError(
                name,
                "path_derivative leaves out the guide's score, whose mean is 0 for a density, and "
                "nothing says that this factor belongs to one",
                "use path_derivative=False, or sample from a distribution with that density",
            )
    for costs in sites:
        if costs.scores or costs.gradient == "enumerated":
            raise UnsupportedSiteError(
                costs.scores[0].name if costs.scores else costs.name,
                "path_derivative needs reparameterised samples",
                "use path_derivative=False, or a reparameterised distribution",
            )


def path_surrogate(sites: Sequence[SiteCosts], guide_trace: Any) -> Tensor:
    r"""A sum that is 0, and whose gradient carries :math:`\partial f / \partial z` to the guide.

    Args:
        sites: The costs at the leaves.
        guide_trace: The guide's trace, from :func:`pair_at_leaves`.
    """
    objective = sum(
        factor_of(cost.value, weight) * cost.value.sum() for weight, cost in weighted_costs(sites)
    )
    moved = [site for site in sample_sites(guide_trace).values() if "sample" in site]
    if not moved or not isinstance(objective, Tensor):
        return torch.zeros(())
    leaves = [site["value"] for site in moved]
    gradients = torch.autograd.grad(objective, leaves, retain_graph=True, allow_unused=True)
    carried = [
        (gradient * site["sample"]).sum()
        for gradient, site in zip(gradients, moved, strict=True)
        if gradient is not None
    ]
    total = sum(carried, start=objective.new_zeros(()))
    return total - total.detach()


def without_scores(site: SiteCosts, guide: Mapping[str, Any]) -> SiteCosts:
    """The costs of a site with the guide's densities at its samples as numbers.

    An entropy in closed form is no density at a sample: its gradient is not that of a score. The
    density that a ``Delta`` carries for a transform of other samples is no density of its own
    sample; what it depends on, its gradient keeps.
    """
    costs = zip(site.parts.get("log_guide", ()), site.members, strict=False)
    numbers = {
        id(cost)
        for cost, name in costs
        if cost is not site.closed and not has_base(guide[name]["fn"], Delta)
    }

    def detached(cost: Cost) -> Cost:
        return cost.with_value(cost.value.detach()) if id(cost) in numbers else cost

    gradient = site.gradient if site.beta is None else "path derivative"
    return replace(site.map(detached), gradient=gradient)

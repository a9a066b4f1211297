"""From a trace pair to costs: every log-density once, in the form that the view wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..weighting import WeightedPrograms
from .baselines import check_averages
from .beta import BetaELBOMixin
from .closed_forms import Form, choose
from .costs import (
    SiteCosts,
    latent_costs,
    marginal_costs,
    observed_costs,
    weighted_costs,
    weighted_scores,
)
from .dependencies import Memory, Order, Parents, Program
from .expectation import expected_costs
from .grouping import group_latents
from .marginals import Marginal, marginals_of
from .obs_mask import apply_obs_masks
from .recording import Branch, Particle
from .scores import plates_that_tell, score_surrogate
from .sites import LatentSite
from .symbols import name_dims
from .traces import is_enumerating, plate_indices, sample_sites
from .tracing import TracingELBO

__all__ = ["CostingELBO"]

STRUCTURES = 100


class CostingELBO(BetaELBOMixin, TracingELBO):
    """Turns each trace pair into the costs of its sites, and the surrogate of their scores.

    What the model enumerates is summed out first, then each site's costs are built, then what the
    guide enumerates is summed out of every cost, then the scores see what is left.
    """

    def closed_form(self, site: LatentSite) -> Form:
        """Hook: whether a latent's ``"kl"``, its ``"entropy"`` or ``None`` is taken in closed form.

        The base takes it where it exists and is right, and the sampled form otherwise.
        """
        return None

    def _meet(self, model: Any, guide: Any) -> None:
        if self._met != (model, guide):
            self._memories: dict[Any, Memory] = {}
        super()._meet(model, guide)

    def _check_affine(self, site: str) -> None:
        """Hook: whether the objective weighs its terms by constants, as score functions need."""

    def _particle(self, branches: Sequence[tuple[Any, Any]], program: Program) -> Particle:
        if len(branches) > 1:
            check_averages(sample_sites(branches[0][1]))
        costs = [self._branch(*pair, program) for pair in branches]
        model_trace, guide_trace = branches[-1]
        return Particle(costs, plate_indices(guide_trace, model_trace))

    def _branch(self, model_trace: Any, guide_trace: Any, program: Program) -> Branch:
        model, guide = sample_sites(model_trace), sample_sites(guide_trace)
        order = self._order(model, guide, partial(program.trace_parents, model_trace, guide_trace))
        if is_enumerating((model_trace, guide_trace)):
            name_dims(model, guide)
            marginals = marginals_of(model, guide, self.max_plate_nesting)
            sites = self._site_costs(model, guide, marginals, order)
            sites = expected_costs(sites, guide, order)
        else:
            sites = self._site_costs(model, guide, (), order)
        scored = [score.name for site in sites for score in site.scores]
        surrogate = None
        if scored and torch.is_grad_enabled():
            self._check_affine(scored[0])
            told = partial(plates_that_tell, guide=guide, order=order)
            surrogate = score_surrogate(weighted_scores(sites), weighted_costs(sites), told)
        return Branch({site.name: site for site in sites}, surrogate)

    def _site_costs(
        self,
        model: Mapping[str, Any],
        guide: Mapping[str, Any],
        marginals: Sequence[Marginal],
        order: Order,
    ) -> list[SiteCosts]:
        priors = {name: model[name] for name in order.model}
        guides = {name: guide[name] for name in order.guide}
        summed = {name for marginal in marginals for name in marginal.members}
        sites = [
            observed_costs(name, site, self.max_plate_nesting)
            for name, site in model.items()
            if name not in priors and name not in summed
        ]
        sites += [marginal_costs(marginal, model) for marginal in marginals if marginal.likelihood]
        groups = list(group_latents(priors, guides, marginals, order))
        apply_obs_masks(groups, model)
        return sites + [self._latent(site, order) for site in groups]

    def _order(
        self,
        model: Mapping[str, Any],
        guide: Mapping[str, Any],
        trace_parents: Callable[[], tuple[Parents, Parents]],
    ) -> Order:
        first, second = ([n for n, s in sites.items() if "beta" in s] for sites in (model, guide))
        names = tuple(first), tuple(second)
        return Order(*names, trace_parents, self._memory_of(names))

    def _memory_of(self, structure: Any) -> Memory:
        if structure not in self._memories and len(self._memories) >= STRUCTURES:
            self._memories.clear()
        return self._memories.setdefault(structure, Memory())

    def _latent(self, site: LatentSite, order: Order) -> SiteCosts:
        choice = choose(site, self.closed_form(site), order)
        if choice.warns:
            self._warn_once(
                site.name, f"{choice.why}; its KL is sampled, each side with its own scale and mask"
            )
        return latent_costs(site, choice, self.max_plate_nesting, self.num_particles > 1)

    def _check_marginalised(
        self, programs: WeightedPrograms, model_trace: Any, guide_trace: Any
    ) -> None:
        for name in sample_sites(model_trace).keys() - guide_trace.nodes.keys():
            if programs.weights.names(name) and "beta" not in model_trace.nodes[name]:
                raise ValueError(
                    f"beta names site {name!r}, which the model marginalises, so it has no KL of "
                    "its own; name the latents whose prior it is part of"
                )

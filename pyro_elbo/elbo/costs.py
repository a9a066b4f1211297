"""What one evaluation yields at a site: its costs, and a record of what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ..weighting import is_zero
from .closed_forms import Choice, closed_entropy
from .cost import Cost
from .densities import check_shape, log_density, minus_log_guide
from .marginals import Marginal
from .scores import Score, WeightedCost, scores_of
from .sites import LatentSite

__all__ = [
    "SiteCosts",
    "latent_costs",
    "marginal_costs",
    "observed_costs",
    "weighted_costs",
    "weighted_scores",
]

Parts = Mapping[str, tuple[Cost, ...]]
Built = tuple[tuple[Cost, ...], dict[str, tuple[Cost, ...]], dict[str, str]]


@dataclass(eq=False)
class SiteCosts:
    """The costs of one site or group, and how they were had.

    Args:
        name: The site.
        role: Its role, as in :class:`~pyro_elbo.terms.SiteTerms`.
        beta: Its weight; ``None`` at observed sites.
        members: The sites of the group.
        costs: What the site adds to the ELBO.
        parts: What is recorded, by name, each with the sign that it has in the ELBO.
        how: How each of them was had.
        why: The reason for that, in words.
        gradient: How its gradient is had.
        closed: Its cost in closed form, where it has one.
        scores: The scores of its sites that are not reparameterised.
        is_density: Whether the guide has a density over all of its dimensions.
    """

    name: str
    role: str
    beta: Any
    members: tuple[str, ...]
    costs: tuple[Cost, ...]
    parts: Parts
    how: Mapping[str, str] = field(default_factory=dict)
    why: str = "log-density at the data"
    gradient: str = "direct"
    closed: Cost | None = None
    scores: tuple[Score, ...] = ()
    is_density: bool = True

    @property
    def described(self) -> tuple[Any, ...]:
        """What is said of the site beside its numbers, in the order of ``SiteTerms``."""
        described = (self.role, self.beta, self.how, self.why, self.gradient, self.members)
        return *described, self.is_density

    def total(self) -> Tensor:
        """The sum of the costs: what the site adds to the ELBO."""
        return _sum(self.costs, 1)

    def kl(self) -> Tensor:
        """Minus the total."""
        return _sum(reversed(self.costs), -1)

    def map(self, change: Callable[[Cost], Cost]) -> SiteCosts:
        """The same site with every cost changed, each once."""
        kept = (*self.costs, *(cost for costs in self.parts.values() for cost in costs))
        changed = {id(cost): cost for cost in kept}
        changed = {key: change(cost) for key, cost in changed.items()}
        return replace(
            self,
            costs=tuple(changed[id(cost)] for cost in self.costs),
            parts={
                name: tuple(changed[id(cost)] for cost in costs)
                for name, costs in self.parts.items()
            },
            closed=None if self.closed is None else changed[id(self.closed)],
        )


def _sum(costs: Iterable[Cost], sign: int) -> Tensor:
    total = None
    for cost in costs:
        total = cost.add_to(total, sign)
    assert total is not None
    return total


def weighted_costs(sites: Iterable[SiteCosts]) -> list[WeightedCost]:
    """All costs with their weights; those of weight 0 are left out."""
    return [
        (1.0 if site.beta is None else site.beta, cost)
        for site in sites
        if not is_zero(site.beta)
        for cost in site.costs
    ]


def weighted_scores(sites: Iterable[SiteCosts]) -> list[tuple[Score, WeightedCost | None]]:
    """All scores, each with its site's closed-form cost and that cost's weight, if it has one."""
    return [
        (score, None if site.closed is None or is_zero(site.beta) else (site.beta, site.closed))
        for site in sites
        for score in site.scores
    ]


def observed_costs(name: str, site: Any, max_plate_nesting: float) -> SiteCosts:
    """The log-likelihood of an observed site, or a model factor."""
    cost = log_density(site, max_plate_nesting)
    role = "factor" if site_is_factor(site) else "observed"
    return SiteCosts(name, role, None, (name,), (cost,), {"log_likelihood": (cost,)})


def marginal_costs(marginal: Marginal, model: Mapping[str, Any]) -> SiteCosts:
    """The likelihood of the observed sites that hang on marginalised ones."""
    members = (*marginal.enumerated, *marginal.observed)
    name = marginal.observed[0] if marginal.observed else marginal.enumerated[0]
    factors = marginal.observed and all(site_is_factor(model[name]) for name in marginal.observed)
    return SiteCosts(
        name,
        "factor" if factors else "observed",
        None,
        members,
        marginal.likelihood,
        {"log_likelihood": marginal.likelihood},
        {"log_likelihood": "enumerated"},
        marginal.why,
    )


def latent_costs(
    site: LatentSite, choice: Choice, max_plate_nesting: float, record_samples: bool
) -> SiteCosts:
    """The costs of a latent in the form that was chosen.

    Args:
        site: The latent.
        choice: The form, with its cost where it is a closed one.
        max_plate_nesting: The deepest plate, for the check of shapes.
        record_samples: Whether sampled log-densities are recorded beside a closed form.
    """
    if choice.cost is not None:
        site.density["log_prob"] = choice.cost.magnitude
        check_shape(site.density, max_plate_nesting)
    build = _closed_kl if choice.form == "kl" else _sampled_prior
    costs, parts, how = build(site, choice, max_plate_nesting)
    if record_samples and choice.form is None:
        parts |= {f"{name}_sample": kept for name, kept in parts.items()}
    elif record_samples:
        parts |= _samples(site, max_plate_nesting)
    scores = scores_of(site.guide_sites.values())
    prior = "" if site.marginal is None else f"; its prior is {site.marginal.why}"
    return SiteCosts(
        site.name,
        site.role,
        site.beta,
        site.members,
        costs,
        parts,
        how,
        choice.why + prior,
        "score function" if scores else "pathwise",
        choice.cost,
        scores,
        site.is_density,
    )


def _sampled_prior(site: LatentSite, choice: Choice, max_plate_nesting: float) -> Built:
    priors = _log_priors(site, max_plate_nesting)
    guides = (choice.cost,) if choice.cost is not None else _log_guides(site, max_plate_nesting)
    how = dict.fromkeys(("log_prior", "log_guide", "kl"), "sampled")
    if choice.form == "entropy":
        how["log_guide"] = "exact"
    if site.role == "map":
        how = dict.fromkeys(how, "exact")
    return (*priors, *guides), _record(priors, guides), how


def _closed_kl(site: LatentSite, choice: Choice, max_plate_nesting: float) -> Built:
    assert choice.cost is not None
    with torch.no_grad():
        entropy = closed_entropy(site)
        guides = (entropy,) if entropy is not None else _log_guides(site, max_plate_nesting)
        log_prior = (*(cost.negated() for cost in guides), choice.cost)
    parts = {"log_guide": guides, "log_prior": log_prior, "kl": (choice.cost,)}
    if choice.cost_per_dimension is not None:
        parts["kl_per_dimension"] = (choice.cost_per_dimension,)
    side = "sampled" if entropy is None else "exact"
    return (choice.cost,), parts, {"log_prior": side, "log_guide": side, "kl": "exact"}


def _record(
    priors: tuple[Cost, ...], guides: tuple[Cost, ...], suffix: str = ""
) -> dict[str, tuple[Cost, ...]]:
    parts = {f"log_prior{suffix}": priors, f"log_guide{suffix}": guides}
    return {name: costs for name, costs in parts.items() if costs}


@torch.no_grad()
def _samples(site: LatentSite, max_plate_nesting: float) -> Parts:
    priors, guides = _log_priors(site, max_plate_nesting), _log_guides(site, max_plate_nesting)
    return _record(priors, guides, "_sample")


def _log_priors(site: LatentSite, max_plate_nesting: float) -> tuple[Cost, ...]:
    sampled = (log_density(prior, max_plate_nesting) for prior in site.prior_sites.values())
    return (*site.marginal_prior, *sampled)


def _log_guides(site: LatentSite, max_plate_nesting: float) -> tuple[Cost, ...]:
    return tuple(minus_log_guide(guide, max_plate_nesting) for guide in site.guide_sites.values())

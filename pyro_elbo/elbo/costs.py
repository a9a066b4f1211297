"""What one evaluation yields at a site: its costs, and a record of what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.poutine.util import site_is_factor
from pyro.util import check_site_shape
from torch import Tensor

from ..errors import UnsupportedSiteError
from ..site_terms import Atom
from ..weighting import unweighted
from .closed_forms import Choice, closed_entropy
from .cost import Cost
from .sites import LatentSite, has_base

__all__ = ["SiteCosts", "latent_costs", "observed_costs"]

Parts = dict[str, tuple[Atom, ...]]
Built = tuple[list[Cost], Parts, dict[str, str]]


@dataclass(frozen=True, eq=False)
class SiteCosts:
    """The costs of one site or group, and how they were had.

    Args:
        name: The site.
        role: Its role, as in :class:`~pyro_elbo.terms.SiteTerms`.
        beta: Its weight; ``None`` at observed sites.
        members: The sites of the group.
        costs: What the site adds to the ELBO.
        parts: The recorded log-densities, by name.
        how: How each of them was had.
        why: The reason for that, in words.
    """

    name: str
    role: str
    beta: Any
    members: tuple[str, ...]
    costs: Sequence[Cost]
    parts: Mapping[str, tuple[Atom, ...]]
    how: Mapping[str, str] = field(default_factory=dict)
    why: str = "log-density at the data"

    def total(self) -> Tensor:
        """The sum of what is differentiated."""
        first, *others = [cost.differentiable.sum() for cost in self.costs]
        return sum(others, start=first)


def observed_costs(name: str, site: Any, max_plate_nesting: float) -> SiteCosts:
    """The log-likelihood of an observed site, or a model factor."""
    cost = _log_density(site, max_plate_nesting)
    role = "factor" if site_is_factor(site) else "observed"
    return SiteCosts(name, role, None, (name,), (cost,), {"log_likelihood": (cost.atom(),)})


def latent_costs(
    site: LatentSite, choice: Choice, max_plate_nesting: float, record_samples: bool
) -> SiteCosts:
    """The costs of a latent in the form that was chosen.

    Args:
        site: The latent.
        choice: The form, with its cost where it is a closed one.
        max_plate_nesting: The deepest plate, for the check of shapes.
        record_samples: Whether sampled log-densities are recorded beside a closed form.

    Raises:
        UnsupportedSiteError: The guide's site is not reparameterised.
    """
    for name, guide_site in site.guide_sites.items():
        _refuse_score_function(name, guide_site)
    if choice.cost is not None:
        site.density["log_prob"] = choice.cost.value
        _check_shape(site.density, max_plate_nesting)
    build = _closed_kl if choice.form == "kl" else _sampled_prior
    costs, parts, how = build(site, choice, max_plate_nesting)
    if record_samples and choice.form is None:
        parts |= {f"{name}_sample": atoms for name, atoms in parts.items()}
    elif record_samples:
        parts |= _samples(site, max_plate_nesting)
    return SiteCosts(site.name, site.role, site.beta, site.members, costs, parts, how, choice.why)


def _sampled_prior(site: LatentSite, choice: Choice, max_plate_nesting: float) -> Built:
    priors = _log_priors(site, max_plate_nesting)
    guides = [choice.cost] if choice.cost is not None else _log_guides(site, max_plate_nesting)
    how = dict.fromkeys(("log_prior", "log_guide", "kl"), "sampled")
    if choice.form == "entropy":
        how["log_guide"] = "exact"
    if site.role == "map":
        how = dict.fromkeys(how, "exact")
    return [*priors, *guides], _record(priors, guides), how


def _closed_kl(site: LatentSite, choice: Choice, max_plate_nesting: float) -> Built:
    assert choice.cost is not None
    with torch.no_grad():
        entropy = closed_entropy(site)
        guides = [entropy] if entropy is not None else _log_guides(site, max_plate_nesting)
    log_guide = tuple(cost.atom(-1) for cost in guides)
    minus_kl, kl = choice.cost.atom(), choice.cost.atom(-1)
    parts = {"log_guide": log_guide, "log_prior": (*log_guide, minus_kl), "kl": (kl,)}
    side = "sampled" if entropy is None else "exact"
    return [choice.cost], parts, {"log_prior": side, "log_guide": side, "kl": "exact"}


def _record(priors: Sequence[Cost], guides: Sequence[Cost], suffix: str = "") -> Parts:
    parts = {
        f"log_prior{suffix}": tuple(cost.atom() for cost in priors),
        f"log_guide{suffix}": tuple(cost.atom(-1) for cost in guides),
    }
    return {name: atoms for name, atoms in parts.items() if atoms}


@torch.no_grad()
def _samples(site: LatentSite, max_plate_nesting: float) -> Parts:
    priors, guides = _log_priors(site, max_plate_nesting), _log_guides(site, max_plate_nesting)
    return _record(priors, guides, "_sample")


def _log_priors(site: LatentSite, max_plate_nesting: float) -> list[Cost]:
    return [_log_density(prior, max_plate_nesting) for prior in site.prior_sites.values()]


def _log_guides(site: LatentSite, max_plate_nesting: float) -> list[Cost]:
    return [_minus_log_guide(guide, max_plate_nesting) for guide in site.guide_sites.values()]


def _log_density(site: Any, max_plate_nesting: float) -> Cost:
    log_prob = _evaluate(site["fn"].log_prob, site)
    scale, mask = unweighted(site)
    value = site["log_prob"] = scale_and_mask(log_prob, scale, mask)
    _check_shape(site, max_plate_nesting)
    return Cost(value, value, site["cond_indep_stack"], scale, mask is not None)


def _minus_log_guide(site: Any, max_plate_nesting: float) -> Cost:
    scale, mask = unweighted(site)
    parts = _evaluate(site["fn"].score_parts, site).scale_and_mask(scale, mask)
    site["log_prob"] = parts.log_prob
    _check_shape(site, max_plate_nesting)
    value, differentiable = -parts.log_prob, -parts.entropy_term
    return Cost(value, differentiable, site["cond_indep_stack"], scale, mask is not None)


def _check_shape(site: Any, max_plate_nesting: Any) -> None:
    if is_validation_enabled():
        check_site_shape(site, max_plate_nesting)


def _evaluate(density: Callable[..., Any], site: Any) -> Any:
    try:
        return density(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"at site {site['name']!r}: {error}") from error


def _refuse_score_function(name: str, site: Any) -> None:
    if site_is_factor(site) and not site["fn"].has_rsample:
        _refuse(name, "a guide's factor that may depend on samples without reparameterisation")
    if _may_be_partial(site["fn"]):
        parts = _evaluate(site["fn"].score_parts, site)
        if not is_identically_zero(parts.score_function):
            _refuse(name, f"the guide's {type(site['fn']).__name__} is only partly reparameterised")
    if not site["fn"].has_rsample and not has_base(site["fn"], Delta):
        _refuse(name, f"the guide's {type(site['fn']).__name__} has no reparameterised sampler")


def _may_be_partial(fn: Any) -> bool:
    """Whether a distribution that claims reparameterisation splits its score in its own way."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    own = type(fn).score_parts is not Distribution.score_parts
    return own and bool(fn.has_rsample)


def _refuse(name: str, why: str) -> None:
    raise UnsupportedSiteError(
        name,
        f"{why}, and score-function gradients are not supported",
        "use a reparameterised distribution (has_rsample=True), or BetaELBOMixin over Trace_ELBO",
    )

"""The log-densities of one traced site, as costs, each evaluated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Distribution, ExpandedDistribution, Independent, MaskedDistribution
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.util import is_validation_enabled
from pyro.util import check_site_shape
from torch import Tensor

from ..weighting import factor_of, unweighted
from .cost import Cost

__all__ = ["check_shape", "log_density", "minus_log_guide", "score_function", "unscaled_log_prob"]


def log_density(site: Any, max_plate_nesting: float) -> Cost:
    """A model site's log-density, under its own scale and mask."""
    scale, mask = unweighted(site)
    log_prob = unscaled_log_prob(site)
    value = site["log_prob"] = scale_and_mask(log_prob, factor_of(log_prob, scale), mask)
    check_shape(site, max_plate_nesting)
    return Cost(value, site["cond_indep_stack"], scale, mask is not None, _dims(site))


def minus_log_guide(site: Any, max_plate_nesting: float) -> Cost:
    """Minus a guide site's log-density; its gradient leaves out what the score function carries."""
    scale, mask = unweighted(site)
    parts = _score_parts(site)
    factor = factor_of(parts.log_prob, scale)
    value = site["log_prob"] = scale_and_mask(parts.log_prob, factor, mask)
    check_shape(site, max_plate_nesting)
    if is_identically_zero(parts.entropy_term):
        value = value.detach()
    elif parts.entropy_term is not parts.log_prob:
        pathwise = scale_and_mask(parts.entropy_term, factor, mask)
        value = pathwise + (value - pathwise).detach()
    return Cost(-value, site["cond_indep_stack"], scale, mask is not None, _dims(site))


def score_function(site: Any) -> Tensor | None:
    """The log-density whose gradient is the score, unscaled and unmasked; ``None`` if pathwise."""
    if site["fn"].has_rsample and not _may_be_partial(site["fn"]):
        return None
    score = _score_parts(site).score_function
    return None if is_identically_zero(score) else score


def unscaled_log_prob(site: Any) -> Tensor:
    """A site's log-density without scale and mask."""
    log_prob: Tensor = _once(site, "unscaled_log_prob", site["fn"].log_prob)
    return log_prob


def check_shape(site: Any, max_plate_nesting: Any) -> None:
    """Check that a site's log-density lies in its plates.

    Raises:
        ValueError: It does not, and validation is on.
    """
    if is_validation_enabled():
        without_dims: Any = {**site, "infer": {}}
        check_site_shape(without_dims, max_plate_nesting)


def _score_parts(site: Any) -> ScoreParts:
    parts: ScoreParts = _once(site, "unscaled_score_parts", site["fn"].score_parts)
    return parts


def _dims(site: Any) -> Any:
    return site.get("dim_to_symbol", {})


def _may_be_partial(fn: Any) -> bool:
    """Whether a distribution that claims reparameterisation splits its score in its own way."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return type(fn).score_parts is not Distribution.score_parts


def _once(site: Any, key: str, density: Callable[..., Any]) -> Any:
    """Evaluate a density at a site's value; what has a graph is kept for the next who asks."""
    if key in site:
        return site[key]
    try:
        value = density(site["value"], *site["args"], **site["kwargs"])
    except (ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"at site {site['name']!r}: {error}") from error
    if torch.is_grad_enabled():
        site[key] = value
    return value

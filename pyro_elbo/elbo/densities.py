"""The log-densities of one traced site, as costs, each evaluated once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import (
    Delta,
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import is_validation_enabled
from pyro.util import check_site_shape
from torch import Tensor

from ..decisions import decide
from ..errors import UnsupportedSiteError
from ..weighting import unweighted, weighed
from .cost import Cost
from .masks import without_masks

__all__ = ["check_shape", "log_density", "minus_log_guide", "score_function", "unscaled_log_prob"]


_NO_SCORE: Any = 0


def log_density(site: Any, max_plate_nesting: float) -> Cost:
    """A model site's log-density, under its own scale and mask."""
    scale, mask = unweighted(site)
    value = site["log_prob"] = weighed(unscaled_log_prob(site), scale, mask)
    check_shape(site, max_plate_nesting)
    return Cost(value, site["cond_indep_stack"], scale, mask is not None, _dims(site))


def minus_log_guide(site: Any, max_plate_nesting: float) -> Cost:
    """Minus a guide site's log-density; its gradient leaves out what the score function carries."""
    scale, mask = unweighted(site)
    parts = _score_parts(site)
    value = site["log_prob"] = weighed(parts.log_prob, scale, mask)
    check_shape(site, max_plate_nesting)
    if parts.entropy_term is not parts.log_prob and is_identically_zero(parts.entropy_term):
        value = value.detach()
    elif parts.entropy_term is not parts.log_prob:
        pathwise = weighed(parts.entropy_term, scale, mask)
        value = pathwise + (value - pathwise).detach()
    return Cost(value, site["cond_indep_stack"], scale, mask is not None, _dims(site), sign=-1)


def score_function(site: Any) -> Tensor | None:
    """The log-density whose gradient is the score, unscaled and unmasked; ``None`` if pathwise."""
    if site["fn"].has_rsample and not _may_be_partial(site["fn"]):
        return None
    own = without_masks(site["fn"])
    if own is site["fn"]:
        score = _score_parts(site).score_function
    else:
        unmasked = {**site, "fn": own}
        score = _once(site, "unmasked_score_parts", lambda _: _parts(unmasked)).score_function
    return None if is_identically_zero(score) else score


def unscaled_log_prob(site: Any) -> Tensor:
    """A site's log-density without scale and mask."""
    log_prob: Tensor = _once(site, "unscaled_log_prob", _log_prob)
    return log_prob


def check_shape(site: Any, max_plate_nesting: Any) -> None:
    """Check that a site's log-density lies in its plates.

    Raises:
        ValueError: It does not, and validation is on.
    """
    is_scalar = not site["log_prob"].dim() and not site["cond_indep_stack"]
    if is_validation_enabled() and not is_scalar:
        without_dims: Any = {**site, "infer": {}} if "_enumerate_dim" in site["infer"] else site
        check_site_shape(without_dims, max_plate_nesting)


def _score_parts(site: Any) -> ScoreParts:
    parts: ScoreParts = _once(site, "unscaled_score_parts", _parts)
    return parts


def _log_prob(site: Any) -> Tensor:
    if _is_at_its_point(site):
        log_density: Tensor = site["fn"].log_density
        return log_density
    log_prob: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return log_prob


def _parts(site: Any) -> ScoreParts:
    if _is_at_its_point(site):
        log_density = site["fn"].log_density
        return ScoreParts(log_density, _NO_SCORE, log_density)
    parts: ScoreParts = site["fn"].score_parts(site["value"], *site["args"], **site["kwargs"])
    return parts


def _is_at_its_point(site: Any) -> bool:
    """Whether the value of a point mass is its point, so that nothing needs to be compared."""
    fn, value = site["fn"], site["value"]
    if type(fn) is not Delta or fn.log_density.shape != fn.batch_shape:
        return False
    return decide(lambda: value.is_set_to(fn.v))


def _dims(site: Any) -> Any:
    return site.get("dim_to_symbol", {})


def _may_be_partial(fn: Any) -> bool:
    """Whether a distribution that claims reparameterisation splits its score in its own way."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return type(fn).score_parts is not Distribution.score_parts


def _once(site: Any, key: str, density: Callable[[Any], Any]) -> Any:
    """Evaluate a density at a site's value; what has a graph is kept for the next who asks."""
    if key in site:
        return site[key]
    try:
        value = density(site)
    except (ValueError, RuntimeError) as error:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(f"at site {site['name']!r}: {error}") from error
    except KeyError as error:
        if "intermediates cache" not in str(error):
            raise
        raise UnsupportedSiteError(
            site["name"],
            "its density is known at its own samples alone, as its flow has no inverse",
            "use a flow that has one, or, in a guide, path_derivative=False",
        ) from error
    if torch.is_grad_enabled():
        site[key] = value
    return value

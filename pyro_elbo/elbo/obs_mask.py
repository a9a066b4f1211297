"""Partly observed sites: where ``obs_mask`` says observed, the guide's samples count for nothing.

``pyro.sample("x", fn, obs=x, obs_mask=mask)`` makes ``x_observed`` and a latent ``x_unobserved``
whose prior is masked where ``x`` is observed. A guide's density without that mask would be an
entropy without a prior, and grow without bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import UnsupportedSiteError
from ..weighting import constrained_name, unweighted
from .masks import add_mask
from .sites import LatentSite

__all__ = ["apply_obs_masks"]

_LATENT, _OBSERVED = "_unobserved", "_observed"


def apply_obs_masks(sites: Iterable[LatentSite], model: Any) -> None:
    """Give the guide's sites of each partly observed latent the mask of the model.

    Args:
        sites: The latents.
        model: The model's sites by name.

    Raises:
        UnsupportedSiteError: The guide's density of such a latent sits in a joint site.
    """
    for site in sites:
        for name in filter(lambda prior: _is_partly_observed(prior, model), site.prior_sites):
            own = all(constrained_name(member) == name for member in site.guide_sites)
            if not own:
                raise UnsupportedSiteError(
                    name,
                    "obs_mask observes a part of it, and the guide's density of that part cannot "
                    f"be told from the rest of the joint site {site.name!r}",
                    "use a guide with a site for each latent, such as AutoNormal",
                )
            mask = unweighted(model[name])[1]
            for guide_site in site.guide_sites.values():
                add_mask(guide_site, mask)


def _is_partly_observed(name: str, model: Any) -> bool:
    base = name.removesuffix(_LATENT)
    return base != name and f"{base}{_OBSERVED}" in model and model[name]["mask"] is not None

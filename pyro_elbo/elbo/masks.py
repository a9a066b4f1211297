"""Masks, wherever a program puts them."""

from __future__ import annotations

from typing import Any

from pyro.distributions import MaskedDistribution

from ..weighting import is_zero

__all__ = ["add_mask", "lift_masks"]


def lift_masks(trace: Any) -> None:
    """Make ``fn.mask(mask)`` what ``poutine.mask`` is: a mask of the site, not of its density.

    The density is then that which the sample has, as its score and its expectations need it.
    """
    for site in trace.nodes.values():
        while site["type"] == "sample" and type(site["fn"]) is MaskedDistribution:
            add_mask(site, site["fn"]._mask)
            site["fn"] = site["fn"].base_dist


def add_mask(site: Any, mask: Any) -> None:
    """Hide what a mask hides, besides what the site's own hides."""
    key = "unweighted_mask" if "beta" in site and is_zero(site["beta"]) else "mask"
    if mask is not True and site[key] is not mask:
        site[key] = mask if site[key] is None else site[key] & mask

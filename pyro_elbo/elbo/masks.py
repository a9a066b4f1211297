"""Masks, wherever a program puts them."""

from __future__ import annotations

from typing import Any

from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution

from ..weighting import is_zero

__all__ = ["add_mask", "lift_masks", "without_masks"]


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


def without_masks(fn: Any) -> Any:
    """A distribution without the masks inside of it: that of the sample, which no mask changes."""
    if isinstance(fn, MaskedDistribution):
        return without_masks(fn.base_dist)
    if isinstance(fn, Independent | ExpandedDistribution):
        base = without_masks(fn.base_dist)
        if base is not fn.base_dist and isinstance(fn, Independent):
            return base.to_event(fn.reinterpreted_batch_ndims)
        if base is not fn.base_dist:
            return base.expand(fn.batch_shape)
    return fn

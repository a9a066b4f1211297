"""Log-ratios of model and guide at the guide's samples, per particle, without any scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..elbo.closed_forms import Form
from ..elbo.gap import TraceGap_ELBO
from ..elbo.sites import LatentSite, same_mask
from ..elbo.traces import sample_sites
from ..errors import UnsupportedSiteError
from ..terms import ELBOTerms

__all__ = ["FixSites", "RatioELBO", "sampled"]


class FixSites(Messenger):
    """Gives sites of the guide the values that a function makes of their distributions.

    Args:
        choose: From the site's message to its value; ``None`` leaves the site alone.
    """

    def __init__(self, choose: Callable[[Any], Tensor | None]) -> None:
        super().__init__()
        self.choose = choose

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"]:
            return
        value = self.choose(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True


def sampled(guide: Any) -> Any:
    """A guide whose sites are sampled, whatever they ask for."""
    options: Any = {"enumerate": None}
    return poutine.infer_config(guide, config_fn=lambda site: options)


class RatioELBO(TraceGap_ELBO):
    """Sampled log-ratios at weight 1 and without scales: what importance weights are made of.

    Args:
        num_particles: How many, vectorised where there are several.
        max_plate_nesting: The deepest plate.
        choose: What :class:`FixSites` takes, for the sites of the guide and for plates' indices.

    Programs that mix particles up are for :func:`~pyro_elbo.evidence.probing.runs_at_once`.
    """

    _checks_at_once = False

    def __init__(
        self,
        num_particles: int,
        max_plate_nesting: float,
        choose: Callable[[Any], Tensor | None] = lambda msg: None,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=num_particles > 1)
        self.choose = choose
        self.pair: Any = None

    def ratios(self, model: Any, guide: Any, args: Any, kwargs: Any) -> ELBOTerms:
        """The terms of one evaluation, nothing scaled."""
        with torch.no_grad():
            return self._evaluate(model, guide, args, kwargs)[1].terms()

    def closed_form(self, site: LatentSite) -> Form:
        """Nothing, but here each latent is checked for what would make the weights wrong."""
        check_weights(site)
        return None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        pair = super()._get_trace(model, guide, args, kwargs)
        for trace in pair:
            for site in sample_sites(trace).values():
                site["scale"] = 1.0
        self.pair = pair
        return pair

    def _trace_pair(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        with FixSites(self.choose):
            return super()._trace_pair(model, guide, args, kwargs)

    def _warn_about_scales(self, *args: Any) -> None:
        """Scales are left out, so they need no warning."""


def check_weights(site: LatentSite) -> None:
    """Check that the mean of p / q over a latent is the evidence.

    Raises:
        UnsupportedSiteError: The guide has no density over the latent, a density of more than it,
            or the two sides mask it differently.
    """
    if site.role == "factor":
        raise UnsupportedSiteError(
            site.name,
            "a factor in the guide makes its density one that does not integrate to 1",
            "leave it out of the guide that the evidence is estimated with",
        )
    if not site.is_density:
        raise UnsupportedSiteError(
            site.name,
            "the guide has no density over it (a point mass has no importance weights)",
            "use a guide with a density over every latent, such as AutoNormal",
        )
    if not site.prior_sites and site.marginal is None:
        raise UnsupportedSiteError(
            site.name,
            "it has no prior in the model, so p / q is no density ratio",
            "leave it out of the guide, or give it a distribution in the model",
        )
    first, *others = (*site.prior_sites.values(), *site.guide_sites.values())
    if any(not same_mask(first, other) for other in others):
        raise UnsupportedSiteError(
            site.name,
            "its masks differ between model and guide, so p / q is no density ratio",
            "mask it on both sides alike",
        )

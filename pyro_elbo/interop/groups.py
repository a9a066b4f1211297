"""ArviZ' groups from the traces of a set of draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from ..site_terms import Atom, SiteTerms
from ..terms import ELBOTerms
from .draws import Draws, is_deterministic
from .layout import Labelled, computed, frames_of, laid_out

__all__ = ["groups_of"]

Group = dict[str, Labelled]


def groups_of(draws: Draws) -> dict[str, Group]:
    """All groups of one set of draws.

    Besides ArviZ' groups ``masks``: which entries of the observed sites count.

    Args:
        draws: The draws.

    Raises:
        ValueError: The model gives something else at one draw alone than at all draws at once.
    """
    masks = _masks(draws)
    return {
        "posterior": _latents(draws, draws.model),
        "log_likelihood": _log_likelihood(draws, masks),
        "posterior_predictive": _data(draws, draws.predictive),
        "prior": _latents(draws, draws.prior),
        "prior_predictive": _data(draws, draws.prior),
        "observed_data": _data(draws, draws.model),
        "sample_stats": _sample_stats(draws.terms),
        "masks": masks,
    }


def _latents(draws: Draws, trace: Any) -> Group:
    """What is not data: latents, priors of reparameterised ones, and deterministic sites."""
    if trace is None:
        return {}
    hidden = {*draws.latents, *draws.computed}
    group: Group = {}
    for name, site in draws.sites.nodes.items():
        if name in hidden:
            group[name] = _value(draws, trace, name)
        elif site["type"] == "sample" and is_deterministic(site):
            group[name] = computed(
                _site(draws.alone, name), _site(trace, name)["value"], draws.count
            )
            if trace is draws.model:
                _check_alone(draws, name, group[name].value[0], _alone_value(draws, name))
    return group


def _alone_value(draws: Draws, name: str) -> Tensor:
    site = draws.alone.nodes[name]
    return computed(site, site["value"], 1).value[0]


def _data(draws: Draws, trace: Any) -> Group:
    return {} if trace is None else {name: _value(draws, trace, name) for name in draws.observed}


def _value(draws: Draws, trace: Any, name: str) -> Labelled:
    site = _site(trace, name)
    return _laid_out(draws, name, site["value"], site["fn"].event_dim)


def _site(trace: Any, name: str) -> Any:
    if name not in trace.nodes:
        raise ValueError(f"site {name!r} is in some runs only, and all draws need the same sites")
    return trace.nodes[name]


def _laid_out(draws: Draws, name: str, value: Any, event_dim: int = 0) -> Labelled:
    return laid_out(name, value, event_dim, frames_of(draws.sites.nodes[name]), draws.count)


def _log_likelihood(draws: Draws, masks: Group) -> Group:
    """Log-densities of the data, without scales; 0 where a draw's mask hides a datum."""
    group: Group = {}
    for name in draws.observed:
        site, alone = _site(draws.model, name), _site(draws.alone, name)
        value, dims = _laid_out(draws, name, _density(site))
        other = laid_out(name, _density(alone), 0, frames_of(alone), 1)
        _check_alone(draws, name, value[0], other.value[0])
        mask = masks[name].value.to(value.device)
        group[name] = Labelled(value.where(mask, 0), dims)
    return group


def _density(site: Any) -> Tensor:
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    log_prob: Tensor = fn.log_prob(site["value"])
    return log_prob


def _check_alone(draws: Draws, name: str, first: Tensor, alone: Tensor) -> None:
    """Check that the first of many draws gives what it gives alone."""
    tolerance = torch.finfo(first.dtype).eps ** (1 / 3) if first.is_floating_point() else 0.0
    first, alone = first.cpu().double(), alone.cpu().double()
    largest = float(torch.cat([alone[alone.isfinite()].abs(), alone.new_ones(1)]).max())
    if not torch.allclose(first, alone, rtol=0.0, atol=tolerance * largest, equal_nan=True):
        raise ValueError(
            f"site {name!r} is something else at one draw alone than at the same draw among "
            f"{draws.count}: the model mixes draws (count its dims from the right, and index by "
            "pyro.ops.indexing.Vindex), or is random outside of its sites (call .eval() on its "
            "modules); or pass vectorize_particles=False"
        )


def _masks(draws: Draws) -> Group:
    group: Group = {}
    for name in draws.observed:
        group[name] = _laid_out(draws, name, _mask_of(_site(draws.model, name)))
    return group


def _mask_of(site: Any) -> Any:
    return True if site["mask"] is None else site["mask"]


def _sample_stats(terms: ELBOTerms) -> Group:
    sites = terms.sites.values()
    zero = terms.objective.new_zeros(terms.num_particles)

    def total(part: str) -> Tensor:
        return sum((site.per_particle(part, ()) for site in sites), start=zero)

    reconstruction, kl = total("log_likelihood"), total("kl")
    stats = {
        "log_weight": sum(map(_log_weight, sites), start=zero),
        "elbo": reconstruction - kl,
        "reconstruction": reconstruction,
        "kl": kl,
        "log_prior": total("log_prior"),
        "log_guide": total("log_guide"),
    }
    return {name: Labelled(values, ()) for name, values in stats.items()}


def _log_weight(site: SiteTerms) -> Tensor:
    """The site's part of log p - log q at each draw, without scales."""
    return torch.cat([_unscaled_ratio(parts) for parts in site.particles])


def _unscaled_ratio(parts: Mapping[str, Sequence[Atom]]) -> Tensor:
    signs = {"log_likelihood": 1, "log_prior": 1, "log_guide": -1}
    ratios = [
        sign * atom._replace(value=atom.value / atom.scale).laid_out(())
        for part, sign in signs.items()
        for atom in parts.get(part, ())
    ]
    return torch.stack(ratios).sum(0)

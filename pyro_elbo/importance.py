"""The importance-weighted bound that several particles of one evaluation give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from .site_terms import PARTICLES, Atom, SiteTerms, subsampling

__all__ = ["importance_bound", "why_no_bound"]

_ALL = object()
_ROUNDING = 1e-12


def importance_bound(sites: Sequence[SiteTerms]) -> Tensor:
    """Log-mean-exp of the unweighted log-ratios, per entry of the plates that all sites share.

    Args:
        sites: The recorded sites, for which :func:`why_no_bound` has no objection.

    Returns:
        A 0-dim tensor in nats.
    """
    frames = _shared_frames(sites)
    scale = prod(subsampling(frame) for frame in frames.values())
    total: Any = sum(_log_ratio(site, list(frames)) for site in sites)
    log_ratio: Tensor = total / scale
    log_size = log_ratio.new_tensor(float(len(log_ratio))).log()
    return scale * (log_ratio.logsumexp(0) - log_size).sum()


def why_no_bound(sites: Sequence[SiteTerms], indices: Mapping[str, Tensor | None]) -> str | None:
    """Why the particles give no bound, with the remedy; ``None`` where they do.

    Args:
        sites: The recorded sites.
        indices: Indices of each plate; ``None`` where the particles saw different data.
    """
    if not sites or sites[0].num_particles < 2:
        return "it needs num_particles > 1"
    all_masked = all(atom.masked for site in sites for atom in site.atoms)
    for site in sites:
        if site.role == "map":
            return f"site {site.name!r} is a point mass"
        if not site.is_density:
            return (
                f"the guide has no density over the latents of {site.name!r} "
                f"({', '.join(site.members)}): some are a point mass, or computed from fewer or "
                "more dimensions than theirs"
            )
        if site.how.get("kl") == "enumerated":
            return f"site {site.name!r} is enumerated, so particles are no samples of it"
        if site.beta is not None and not site.has_prior:
            return f"the guide's site {site.name!r} has no prior in the model"
        if site.beta is not None and not all_masked and any(atom.masked for atom in site.atoms):
            return f"site {site.name!r} is masked, and not all sites are"
        for atom in site.atoms:
            why = _objection(site.name, atom, _shared_frames(sites), indices)
            if why:
                return why
    return None


def _objection(
    name: str, atom: Atom, shared: Mapping[str, Any], indices: Mapping[str, Tensor | None]
) -> str | None:
    scale = atom.user_scale
    if not isinstance(scale, (int, float)) or abs(scale - 1.0) > _ROUNDING:
        return f"site {name!r} has a scale of its own, and scaled weights give no bound"
    for frame in atom.stack:
        if indices.get(frame.name, _ALL) is None:
            return f"the particles drew different minibatches of {frame.name!r}; vectorize them"
        if subsampling(frame) != 1.0 and frame.name not in shared:
            return f"plate {frame.name!r} is subsampled, and not all sites are inside it"
    return None


def _shared_frames(sites: Sequence[SiteTerms]) -> dict[str, Any]:
    atoms = [atom for site in sites for atom in site.atoms]
    shared = set.intersection(*(set(atom.frames) for atom in atoms)) - {PARTICLES}
    return {name: frame for name, frame in atoms[0].frames.items() if name in shared}


def _log_ratio(site: SiteTerms, plates: Sequence[str]) -> Any:
    parts = ("log_likelihood", "log_prior_sample", "log_guide_sample")
    likelihood, prior, guide = (site.per_particle(part, plates) for part in parts)
    return likelihood + prior - guide

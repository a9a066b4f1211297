"""The importance-weighted bound that several particles of one evaluation give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

from .site_terms import PARTICLES, Atom, SiteTerms, subsampling

__all__ = ["importance_bound"]


def importance_bound(
    sites: Sequence[SiteTerms], indices: Mapping[str, Tensor | None], like: Tensor
) -> Tensor:
    r"""Log-mean-exp of the unweighted log-ratios, per entry of the plates that all sites share.

    Args:
        sites: The recorded sites.
        indices: Indices of each plate; ``None`` where the particles saw different data.
        like: A tensor of the result's dtype and device.

    Returns:
        A 0-dim tensor in nats; nan where the particles give no bound.
    """
    atoms = [atom for site in sites for atom in site.atoms]
    if not atoms or sites[0].num_particles < 2 or any(site.role == "map" for site in sites):
        return like.new_full((), float("nan"))
    shared = set.intersection(*(set(atom.frames) for atom in atoms)) - {PARTICLES}
    plates = [name for name in atoms[0].frames if name in shared]
    if not all(_is_proper(atom, shared, indices) for atom in atoms):
        return like.new_full((), float("nan"))
    scale = prod(subsampling(atoms[0].frames[name]) for name in plates)
    log_ratio = sum(_log_ratio(site, plates) for site in sites) / scale
    log_mean = log_ratio.logsumexp(0) - like.new_tensor(float(len(log_ratio))).log()
    return scale * log_mean.sum()


def _log_ratio(site: SiteTerms, plates: Sequence[str]) -> Any:
    parts = ("log_likelihood", "log_prior_sample", "log_guide_sample")
    likelihood, prior, guide = (site.per_particle(part, plates) for part in parts)
    return likelihood + prior - guide


def _is_proper(atom: Atom, shared: Any, indices: Mapping[str, Tensor | None]) -> bool:
    scale = atom.user_scale
    if not isinstance(scale, (int, float)) or abs(scale - 1.0) > 1e-12:
        return False
    if any(indices.get(name, 0) is None for name in atom.frames):
        return False
    return all(frame.name in shared or subsampling(frame) == 1.0 for frame in atom.stack)

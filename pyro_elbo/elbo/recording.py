"""From the costs of all particles to the terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..site_terms import SiteTerms
from ..terms import ELBOTerms
from .costs import SiteCosts

__all__ = ["Particle", "record"]


class Particle(NamedTuple):
    """What one trace pair gave: its costs, and the indices of each plate's data."""

    costs: Sequence[SiteCosts]
    indices: Mapping[str, Tensor]


def record(
    particles: Sequence[Particle], objective: Tensor, default_beta: Any, log_evidence: Tensor | None
) -> ELBOTerms:
    """Collect the particles' records site by site; nothing is reduced yet."""
    by_particle = [{site.name: site for site in particle.costs} for particle in particles]
    first = {name: site for sites in reversed(by_particle) for name, site in sites.items()}
    names = dict.fromkeys(name for sites in by_particle for name in sites)
    sites = {name: _site_terms(first[name], by_particle) for name in names}
    indices = _shared_indices(particles)
    return ELBOTerms(sites, objective.detach(), indices, default_beta, log_evidence)


def _site_terms(site: SiteCosts, by_particle: Sequence[Mapping[str, SiteCosts]]) -> SiteTerms:
    parts = tuple(sites[site.name].parts if site.name in sites else {} for sites in by_particle)
    return SiteTerms(site.name, site.role, site.beta, site.how, site.why, site.members, parts)


def _shared_indices(particles: Sequence[Particle]) -> dict[str, Tensor | None]:
    plates = {name: None for particle in particles for name in particle.indices}
    return {name: _shared(name, particles) for name in plates}


def _shared(name: str, particles: Sequence[Particle]) -> Tensor | None:
    first, *others = [particle.indices.get(name) for particle in particles]
    if first is None or any(other is None or not torch.equal(other, first) for other in others):
        return None
    return first

"""From the costs of all particles to the terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..site_terms import Atom, Sites, SiteTerms
from ..terms import ELBOTerms
from .costs import SiteCosts

__all__ = ["Branch", "Particle", "record"]

_SIGNS = {"log_guide": -1, "log_guide_sample": -1, "kl": -1, "kl_per_dimension": -1}


class Branch(NamedTuple):
    """What one trace pair gave.

    Args:
        sites: The costs by site.
        surrogate: What is added to the objective for its gradient; 0 in value.
    """

    sites: Mapping[str, SiteCosts]
    surrogate: Tensor | None = None


class Particle(NamedTuple):
    """What one particle gave.

    Args:
        branches: One, or one for each combination of values where sites are enumerated in sequence.
        indices: The indices of each plate's data.
    """

    branches: Sequence[Branch]
    indices: Mapping[str, Tensor]


def record(
    particles: Sequence[Particle], objective: Tensor, default_beta: Any, log_evidence: Tensor | None
) -> ELBOTerms:
    """Collect the particles' records site by site; nothing is reduced yet."""
    first = {
        name: site
        for particle in reversed(particles)
        for branch in reversed(particle.branches)
        for name, site in branch.sites.items()
    }
    names = dict.fromkeys(
        name for particle in particles for branch in particle.branches for name in branch.sites
    )
    sites = Sites({name: _site_terms(first[name], particles) for name in names})
    indices = _shared_indices(particles)
    return ELBOTerms(sites, objective.detach(), indices, default_beta, log_evidence)


def _site_terms(site: SiteCosts, particles: Sequence[Particle]) -> SiteTerms:
    parts = tuple(_atoms(site.name, particle.branches) for particle in particles)
    return SiteTerms(
        site.name,
        site.role,
        site.beta,
        site.how,
        site.why,
        site.gradient,
        site.members,
        parts,
        site.is_density,
    )


def _atoms(name: str, branches: Sequence[Branch]) -> dict[str, tuple[Atom, ...]]:
    atoms: dict[str, tuple[Atom, ...]] = {}
    for site in (branch.sites[name] for branch in branches if name in branch.sites):
        for part, costs in site.parts.items():
            new = tuple(cost.atom(_SIGNS.get(part, 1)) for cost in costs)
            atoms[part] = atoms.get(part, ()) + new
    return atoms


def _shared_indices(particles: Sequence[Particle]) -> dict[str, Tensor | None]:
    plates = {name: None for particle in particles for name in particle.indices}
    return {name: _shared(name, particles) for name in plates}


def _shared(name: str, particles: Sequence[Particle]) -> Tensor | None:
    first, *others = [particle.indices.get(name) for particle in particles]
    if first is None or any(other is None or not torch.equal(other, first) for other in others):
        return None
    return first

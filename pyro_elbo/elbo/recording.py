"""From the costs of all particles to the terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..site_terms import Atom, Sites, SiteTerms
from ..terms import ELBOTerms
from ..weighting import same
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
    """Collect the particles' records site by site; nothing is reduced yet.

    A site that is observed in some runs and latent in others has a record of each.
    """
    named = _named(particles)
    first = {
        name: site
        for branches in reversed(named)
        for sites in reversed(branches)
        for name, site in sites.items()
    }
    names = dict.fromkeys(name for branches in named for sites in branches for name in sites)
    sites = Sites({name: _site_terms(name, first[name], named) for name in names})
    indices = _shared_indices(particles)
    return ELBOTerms(sites, objective.detach(), indices, default_beta, log_evidence)


def _named(particles: Sequence[Particle]) -> list[list[dict[str, SiteCosts]]]:
    """For each particle and branch the sites, by names that mean one thing in all of them."""
    branches = [branch for particle in particles for branch in particle.branches]
    sites = [site for branch in branches for site in branch.sites.values()]
    latent = {site.name for site in sites if site.beta is not None}

    def name_of(site: SiteCosts) -> str:
        is_both = site.beta is None and site.name in latent
        return f"{site.name} (observed)" if is_both else site.name

    return [
        [{name_of(site): site for site in branch.sites.values()} for branch in particle.branches]
        for particle in particles
    ]


def _site_terms(
    name: str, site: SiteCosts, named: Sequence[Sequence[Mapping[str, SiteCosts]]]
) -> SiteTerms:
    parts = tuple(
        _atoms([sites[name] for sites in branches if name in sites]) for branches in named
    )
    return SiteTerms(
        name,
        site.role,
        site.beta,
        site.how,
        site.why,
        site.gradient,
        site.members,
        parts,
        site.is_density,
    )


def _atoms(sites: Sequence[SiteCosts]) -> dict[str, tuple[Atom, ...]]:
    atoms: dict[str, tuple[Atom, ...]] = {}
    for site in sites:
        for part, costs in site.parts.items():
            new = tuple(cost.atom(_SIGNS.get(part, 1)) for cost in costs)
            atoms[part] = atoms.get(part, ()) + new
    return atoms


def _shared_indices(particles: Sequence[Particle]) -> dict[str, Tensor | None]:
    plates = {name: None for particle in particles for name in particle.indices}
    return {name: _shared(name, particles) for name in plates}


def _shared(name: str, particles: Sequence[Particle]) -> Tensor | None:
    first, *others = [particle.indices.get(name) for particle in particles]
    if first is None or any(other is None or not same(other, first) for other in others):
        return None
    return first

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


class Kept(NamedTuple):
    """What the terms of a site are made from: no graph, and no tensor that a step changes.

    Args:
        described: What :class:`~pyro_elbo.terms.SiteTerms` says of the site beside its name.
        atoms: What was recorded, by part.
    """

    described: tuple[Any, ...]
    atoms: Mapping[str, tuple[Atom, ...]]

    @property
    def is_observed(self) -> bool:
        """Whether it is no latent."""
        return "log_likelihood" in self.atoms


class Record(NamedTuple):
    """What an evaluation leaves behind, until its terms are read.

    Args:
        particles: For each particle and branch the sites, by name.
        indices: For each particle the indices of each plate's data.
        objective: What was maximised.
        default_beta: The weight of a program without latents.
        log_evidence: The log evidence, where the loss was told.
    """

    particles: Sequence[Sequence[Mapping[str, Kept]]]
    indices: Sequence[Mapping[str, Tensor]]
    objective: Tensor
    default_beta: Any
    log_evidence: Tensor | None

    def terms(self) -> ELBOTerms:
        """Collect the particles' records site by site; nothing is reduced yet.

        A site that is observed in some runs and latent in others has a record of each.
        """
        named = _named(self.particles)
        names = dict.fromkeys(name for branches in named for sites in branches for name in sites)
        sites = Sites({name: _site_terms(name, named) for name in names})
        return ELBOTerms(
            sites, self.objective, _shared(self.indices), self.default_beta, self.log_evidence
        )


def record(
    particles: Sequence[Particle], objective: Tensor, default_beta: Any, log_evidence: Tensor | None
) -> Record:
    """Keep what the terms need of an evaluation."""
    return Record(
        [[_kept(branch.sites) for branch in particle.branches] for particle in particles],
        [particle.indices for particle in particles],
        objective.detach(),
        default_beta,
        log_evidence,
    )


def _kept(sites: Mapping[str, SiteCosts]) -> dict[str, Kept]:
    return {name: Kept(site.described, _atoms(site)) for name, site in sites.items()}


def _atoms(site: SiteCosts) -> dict[str, tuple[Atom, ...]]:
    return {
        part: tuple([cost.atom(_SIGNS.get(part, 1)) for cost in costs])
        for part, costs in site.parts.items()
    }


def _named(
    particles: Sequence[Sequence[Mapping[str, Kept]]],
) -> Sequence[Sequence[Mapping[str, Kept]]]:
    """The sites by names that mean one thing in all particles and branches."""
    sites = [item for branches in particles for kept in branches for item in kept.items()]
    observed = {name for name, kept in sites if kept.is_observed}
    both = observed & {name for name, kept in sites if not kept.is_observed}
    if not both:
        return particles

    def name_of(name: str, kept: Kept) -> str:
        return f"{name} (observed)" if name in both and kept.is_observed else name

    return [
        [{name_of(*item): item[1] for item in kept.items()} for kept in branches]
        for branches in particles
    ]


def _site_terms(name: str, named: Sequence[Sequence[Mapping[str, Kept]]]) -> SiteTerms:
    found = [[kept[name] for kept in branches if name in kept] for branches in named]
    first = next(kept for branches in found for kept in branches)
    role, beta, how, why, gradient, members, is_density = first.described
    parts = tuple(_joined([kept.atoms for kept in branches]) for branches in found)
    return SiteTerms(name, role, beta, how, why, gradient, members, parts, is_density)


def _joined(atoms: Sequence[Mapping[str, tuple[Atom, ...]]]) -> dict[str, tuple[Atom, ...]]:
    joined: dict[str, tuple[Atom, ...]] = {}
    for of_branch in atoms:
        for part, own in of_branch.items():
            joined[part] = joined.get(part, ()) + own
    return joined


def _shared(indices: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor | None]:
    """The indices of each plate, where all particles saw the same ones."""
    plates = {name: None for of_particle in indices for name in of_particle}
    return {name: _common([own.get(name) for own in indices]) for name in plates}


def _common(indices: Sequence[Tensor | None]) -> Tensor | None:
    first, *others = indices
    if first is None or any(other is None or not same(other, first) for other in others):
        return None
    return first

"""The numbers of an evaluation's terms as one flat list, and terms made from such numbers again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..site_terms import Atom, Sites, SiteTerms
from ..summary import Summary
from ..terms import ELBOTerms

__all__ = ["TermsLayout", "tensors_of"]

Change = Callable[[Atom], Atom]


def tensors_of(terms: ELBOTerms, like: ELBOTerms) -> list[Tensor]:
    """The tensors of some terms, in order.

    Args:
        terms: The terms.
        like: Others of the same structure, which say which scales and indices are tensors.

    Raises:
        ValueError: The structures differ.
    """
    found: list[Tensor] = []
    if _structure(terms) != _structure(like):
        raise ValueError("the sites, plates or shapes are others than in the evaluation before it")
    for name, site in terms.sites.items():
        for atom, other in zip(site.atoms, like.sites[name].atoms, strict=True):
            found.append(atom.value)
            if isinstance(other.scale, Tensor):
                found.append(torch.as_tensor(atom.scale))
    indices = [terms.indices[name] for name, value in like.indices.items() if value is not None]
    return found + [torch.as_tensor(value) for value in indices]


class TermsLayout:
    """Makes terms from their numbers.

    Args:
        like: Terms of the structure.
        weights: The name of each site's weight; sites that have none are left out.
    """

    def __init__(self, like: ELBOTerms, weights: Mapping[str, str]) -> None:
        self._like, self._weights = like, weights
        self._betas = {n: site.beta for n, site in like.sites.items() if site.beta is not None}

    def terms(
        self, objective: Tensor, tensors: Sequence[Tensor], weights: Mapping[str, float]
    ) -> ELBOTerms:
        """The terms.

        Args:
            objective: The objective.
            tensors: The tensors, in the order of :func:`tensors_of`.
            weights: The weights by name.
        """
        left = iter(tensors)

        def filled(atom: Atom) -> Atom:
            value = next(left)
            scale = next(left) if isinstance(atom.scale, Tensor) else atom.scale
            return atom._replace(value=value, scale=scale)

        sites = {name: self._site(site, filled, weights) for name, site in self._like.sites.items()}
        indices = {
            name: None if value is None else next(left)
            for name, value in self._like.indices.items()
        }
        default = weights.get("*", self._like.default_beta)
        return replace(
            self._like,
            sites=Sites(sites),
            objective=objective,
            indices=indices,
            default_beta=default,
        )

    def summary(self, totals: Tensor, weights: Mapping[str, float]) -> Summary:
        """The summary of a step.

        Args:
            totals: Its totals, as :func:`~pyro_elbo.summary.totals_of` has them.
            weights: The weights by name.
        """
        betas = {name: self._beta(name, beta, weights) for name, beta in self._betas.items()}
        default = weights.get("*", self._like.default_beta)
        return Summary(totals, betas, default, self._like.num_data)

    def tensors(self, terms: ELBOTerms | None) -> list[Tensor]:
        """The tensors of other terms.

        Raises:
            ValueError: These have another structure.
        """
        assert terms is not None
        return tensors_of(terms, self._like)

    def _site(self, site: SiteTerms, filled: Change, weights: Mapping[str, float]) -> SiteTerms:
        particles = tuple(
            {part: tuple(map(filled, atoms)) for part, atoms in parts.items()}
            for parts in site.particles
        )
        return replace(site, particles=particles, beta=self._beta(site.name, site.beta, weights))

    def _beta(self, site: str, beta: Any, weights: Mapping[str, float]) -> Any:
        return weights[self._weights[site]] if site in self._weights else beta


def _structure(terms: ELBOTerms) -> Any:
    sites = [
        (name, site.role, site.members, site.gradient, tuple(site.how.items()), _parts(site))
        for name, site in terms.sites.items()
    ]
    return sites, list(terms.indices), terms.known_evidence is None


def _parts(site: SiteTerms) -> Any:
    return [
        [(part, [(a.value.shape, a.stack, a.masked) for a in atoms]) for part, atoms in p.items()]
        for p in site.particles
    ]

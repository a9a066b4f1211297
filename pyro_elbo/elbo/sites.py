"""The latents of a trace pair: which sites belong together, and what a view may ask of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.util import site_is_factor
from torch.distributions import ComposeTransform, IndependentTransform, TransformedDistribution

from ..weighting import constrained_name, same, unweighted
from .cost import Cost
from .marginals import Marginal

__all__ = ["LatentSite", "group_latents", "has_base", "same_mask", "same_scale"]


@dataclass(frozen=True, eq=False)
class LatentSite:
    """A latent as a view sees it: one site, or a group whose density cannot be split.

    Args:
        name: The site; in a joint group, the guide's auxiliary site.
        role: ``"latent"``, ``"joint"``, ``"map"`` or ``"factor"``.
        prior_sites: The model's sites of the group, by name.
        guide_sites: The guide's sites of the group, by name.
        marginal: The group of marginalised sites that the latent hangs on in the model, if any;
            its prior is then not among ``prior_sites``.
    """

    name: str
    role: str
    prior_sites: Mapping[str, Any]
    guide_sites: Mapping[str, Any]
    marginal: Marginal | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the sites of the group, the guide's first."""
        summed = () if self.marginal is None else self.marginal.enumerated
        return tuple(dict.fromkeys([*self.guide_sites, *self.prior_sites, *summed]))

    @property
    def marginal_prior(self) -> tuple[Cost, ...]:
        """The log prior that is left when the model's enumerated sites are summed out."""
        return () if self.marginal is None else self.marginal.prior

    @cached_property
    def beta(self) -> Any:
        """The weight that the group's sites share.

        Raises:
            ValueError: Their weights differ.
        """
        sites = {**self.prior_sites, **self.guide_sites}
        betas = {name: site["beta"] for name, site in sites.items()}
        first = next(iter(betas.values()))
        if any(beta != first for beta in betas.values()):
            raise ValueError(
                f"beta differs inside the joint group of {self.name!r} ({betas}), whose density "
                "cannot be split; give its sites one weight"
            )
        return first

    @property
    def prior(self) -> Any:
        """The model's site, where the group has one, and it names the group; else ``None``."""
        return self.prior_sites[self.name] if self.prior_sites.keys() == {self.name} else None

    @cached_property
    def density(self) -> Any:
        """The one guide site that holds the latent's density; ``None`` where several share it.

        An auxiliary site holds that of ``z`` too, where ``z`` is its sample unchanged.
        """
        others = [name for name in self.guide_sites if name != self.name]
        if self.guide_sites.keys() == {self.name}:
            return self.guide_sites[self.name]
        if len(others) == 1 and constrained_name(others[0]) == self.name:
            auxiliary = self.guide_sites[others[0]]
            return auxiliary if _is_copy(self.guide_sites[self.name], auxiliary) else None
        return None

    @property
    def guide(self) -> Any:
        """The distribution of :attr:`density`, without transforms that change nothing."""
        return without_identities(self.density["fn"])


def _is_copy(site: Any, auxiliary: Any) -> bool:
    """Whether a Delta repeats an auxiliary's sample, with no Jacobian, and counts as often."""
    fn = site["fn"]
    if not isinstance(fn, Delta) or fn.batch_shape != auxiliary["fn"].batch_shape:
        return False
    return (
        torch.equal(site["value"], auxiliary["value"])
        and not bool(fn.log_density.any())
        and same_scale(site, auxiliary)
        and same_mask(site, auxiliary)
    )


def same_scale(a: Any, b: Any) -> bool:
    """Whether two sites have equal scales, their weights left out."""
    return same(unweighted(a)[0], unweighted(b)[0])


def same_mask(a: Any, b: Any) -> bool:
    """Whether two sites have equal masks."""
    return same(unweighted(a)[1], unweighted(b)[1])


def without_identities(fn: Any) -> Any:
    """A distribution without the outer transforms that are the identity."""
    while isinstance(fn, TransformedDistribution) and all(map(_is_identity, fn.transforms)):
        fn = fn.base_dist
    return fn


def _is_identity(transform: Any) -> bool:
    if isinstance(transform, IndependentTransform):
        return _is_identity(transform.base_transform)
    return isinstance(transform, ComposeTransform) and not transform.parts


def has_base(fn: Any, kinds: Any) -> bool:
    """Whether a distribution, or one that it wraps, is of one of the kinds."""
    while fn is not None:
        if isinstance(fn, kinds):
            return True
        fn = getattr(fn, "base_dist", None)
    return False


def group_latents(
    priors: Mapping[str, Any], guide: Mapping[str, Any], marginals: Sequence[Marginal] = ()
) -> Iterator[LatentSite]:
    """Group the sites that carry a KL.

    An auxiliary ``z_unconstrained`` and the ``Delta`` of ``z`` are the group ``z``; a run of any
    other auxiliary sites and the ``Delta`` sites after it are one joint group, and so are latents
    that hang on the same marginalised sites.

    Args:
        priors: The model's weighed sites by name, in order.
        guide: The guide's weighed sites by name, in order.
        marginals: The groups of sites that the model marginalises.
    """
    owners = _owners(priors, guide)
    by_owner = {name: _marginal_of(name, owners, marginals) for name in owners.values()}
    first: dict[Any, str] = {}
    for owner, marginal in by_owner.items():
        first.setdefault(owner if marginal is None else id(marginal), owner)
    merged = {
        owner: first[owner if marginal is None else id(marginal)]
        for owner, marginal in by_owner.items()
    }
    for name in dict.fromkeys(merged.values()):
        members = [member for member, owner in owners.items() if merged[owner] == name]
        on_guide = {member: guide[member] for member in members if member in guide}
        on_model = {member: priors[member] for member in members if member in priors}
        role = _role(name, on_model, on_guide)
        if sum(owner == name for owner in merged.values()) > 1:
            role = "joint"
        summed = by_owner[name]
        kept = {n: s for n, s in on_model.items() if summed is None or n not in summed.latents}
        yield LatentSite(name, role, kept, on_guide, summed)


def _marginal_of(
    owner: str, owners: Mapping[str, str], marginals: Sequence[Marginal]
) -> Marginal | None:
    for marginal in marginals:
        if any(owners[latent] == owner for latent in marginal.latents):
            return marginal
    return None


def _owners(priors: Mapping[str, Any], guide: Mapping[str, Any]) -> dict[str, str]:
    owners: dict[str, str] = {}
    run: list[str] = []
    joined = False
    for name, site in guide.items():
        followed = constrained_name(name)
        if name in owners:
            continue
        if name in priors:
            joins = bool(run) and has_base(site["fn"], Delta)
            owners |= dict.fromkeys([*run, name], run[0]) if joins else {name: name}
            joined = joined or joins
        elif followed in priors and has_base(guide[followed]["fn"], Delta):
            owners[name] = owners[followed] = followed
        else:
            owners[name] = name
            if not site_is_factor(site):
                run, joined = [*([] if joined else run), name], False
    return owners | {name: name for name in priors if name not in owners}


def _role(name: str, on_model: Mapping[str, Any], on_guide: Mapping[str, Any]) -> str:
    if name not in on_model and on_model:
        return "joint"
    if not on_model and all(site_is_factor(site) for site in on_guide.values()):
        return "factor"
    if on_guide.keys() == {name} == on_model.keys() and has_base(on_guide[name]["fn"], Delta):
        return "map"
    return "latent"

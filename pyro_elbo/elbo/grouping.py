"""Which sites of a trace pair belong together, because their density cannot be split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pyro.distributions import Delta
from pyro.poutine.util import site_is_factor
from torch.distributions import biject_to

from ..weighting import constrained_name
from .dependencies import Order
from .marginals import Marginal
from .sites import LatentSite, has_base

__all__ = ["group_latents"]

Sites = Mapping[str, Any]


def group_latents(
    priors: Sites, guide: Sites, marginals: Sequence[Marginal], order: Order
) -> Iterator[LatentSite]:
    """Group the sites that carry a KL.

    An auxiliary ``z_unconstrained`` and the ``Delta`` of ``z`` are the group ``z``; a run of any
    other auxiliary sites and the ``Delta`` sites computed from it are one joint group, and so are
    latents that hang on the same marginalised sites.

    Args:
        priors: The model's weighed sites by name, in order.
        guide: The guide's weighed sites by name, in order.
        marginals: The groups of sites that the model marginalises.
        order: The order of the sites.
    """
    owners = _owners(priors, guide, order)
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
        yield LatentSite(name, role, kept, on_guide, summed, _is_density(on_model, on_guide))


def _marginal_of(
    owner: str, owners: Mapping[str, str], marginals: Sequence[Marginal]
) -> Marginal | None:
    for marginal in marginals:
        if any(owners[latent] == owner for latent in marginal.latents):
            return marginal
    return None


def _owners(priors: Sites, guide: Sites, order: Order) -> dict[str, str]:
    owners: dict[str, str] = {}
    runs: list[tuple[list[str], list[str]]] = []
    for name, site in guide.items():
        followed = constrained_name(name)
        if name in owners:
            continue
        if name in priors and runs and has_base(site["fn"], Delta):
            runs[-1][1].append(name)
        elif name in priors or site_is_factor(site):
            owners[name] = name
        elif followed in priors and has_base(guide[followed]["fn"], Delta):
            owners[name] = owners[followed] = followed
        elif runs and not runs[-1][1]:
            runs[-1][0].append(name)
        else:
            runs.append(([name], []))
    for auxiliaries, deltas in runs:
        owners |= _joined(auxiliaries, deltas, priors, guide, order)
    ordered = {name: owners[name] for name in guide}
    return ordered | {name: name for name in priors if name not in ordered}


def _joined(
    auxiliaries: Sequence[str], deltas: Sequence[str], priors: Sites, guide: Sites, order: Order
) -> dict[str, str]:
    owners = {name: name for name in (*auxiliaries, *deltas)}
    on_model = {name: priors[name] for name in deltas}
    if not _is_density(on_model, {name: guide[name] for name in owners}):
        deltas = [name for name in deltas if order.may_descend(name, auxiliaries)]
    return owners | dict.fromkeys([*auxiliaries, *deltas] if deltas else (), auxiliaries[0])


def _is_density(on_model: Sites, on_guide: Sites) -> bool:
    """Whether the auxiliary sites have as many dimensions as the ``Delta`` sites together."""
    deltas = [name for name in on_model if name in on_guide and _is_delta(on_guide[name])]
    auxiliaries = [site for name, site in on_guide.items() if name not in on_model]
    if not deltas:
        return True
    needed = _total(_dimensions(on_guide[name], on_model[name]["fn"]) for name in deltas)
    held = [site for site in auxiliaries if not _is_delta(site) and not site_is_factor(site)]
    return needed == _total(_dimensions(site, site["fn"]) for site in held)


def _is_delta(site: Any) -> bool:
    return has_base(site["fn"], Delta)


def _total(dimensions: Iterable[Counter[str]]) -> Counter[str]:
    return sum(dimensions, Counter())


def _dimensions(site: Any, fn: Any) -> Counter[str]:
    """How many coordinates a value has when its support's constraints are taken off."""
    shape = site["value"].shape
    try:
        if fn.support.is_discrete:
            return Counter(discrete=shape.numel())
        return Counter(continuous=biject_to(fn.support).inverse_shape(shape).numel())
    except NotImplementedError:
        return Counter(continuous=shape.numel())


def _role(name: str, on_model: Mapping[str, Any], on_guide: Mapping[str, Any]) -> str:
    if name not in on_model and on_model:
        return "joint"
    if not on_model and all(site_is_factor(site) for site in on_guide.values()):
        return "factor"
    if on_guide.keys() == {name} == on_model.keys() and has_base(on_guide[name]["fn"], Delta):
        return "map"
    return "latent"

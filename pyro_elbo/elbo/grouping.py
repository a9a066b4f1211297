"""Which sites of a trace pair belong together, because their density cannot be split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pyro.distributions import Delta
from pyro.poutine.util import site_is_factor
from torch.distributions import biject_to, constraints

from ..weighting import constrained_name
from .dependencies import Order
from .marginals import Marginal
from .sites import LatentSite, has_base

__all__ = ["group_latents"]

Sites = Mapping[str, Any]
Dimensions = tuple[int, int]


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

    @cache
    def is_density(*members: str) -> bool:
        return _is_density(_chosen(priors, members), _chosen(guide, members))

    groups: dict[str, list[str]] = {}
    for member, owner in _owners(priors, guide, order, is_density).items():
        groups.setdefault(owner, []).append(member)
    for names, members, summed in _merged(groups, marginals):
        on_guide, on_model = _chosen(guide, members), _chosen(priors, members)
        role = _role(names[0], on_model, on_guide) if len(names) == 1 else "joint"
        kept = {n: s for n, s in on_model.items() if summed is None or n not in summed.latents}
        yield LatentSite(names[0], role, kept, on_guide, summed, is_density(*members))


def _chosen(sites: Sites, names: Iterable[str]) -> dict[str, Any]:
    return {name: sites[name] for name in names if name in sites}


def _merged(
    groups: Mapping[str, list[str]], marginals: Sequence[Marginal]
) -> Iterator[tuple[list[str], list[str], Marginal | None]]:
    """The groups, those that hang on one marginal in one; each with its names and members."""
    merged: dict[Any, tuple[list[str], list[str], Marginal | None]] = {}
    for name, members in groups.items():
        summed = next((m for m in marginals if not set(members).isdisjoint(m.latents)), None)
        key = name if summed is None else id(summed)
        names, own, _ = merged.setdefault(key, ([], [], summed))
        names.append(name)
        own += members
    yield from merged.values()


def _owners(
    priors: Sites, guide: Sites, order: Order, is_density: Callable[..., bool]
) -> dict[str, str]:
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
        owners |= _joined(auxiliaries, deltas, order, is_density)
    ordered = {name: owners[name] for name in guide}
    return ordered | {name: name for name in priors if name not in ordered}


def _joined(
    auxiliaries: Sequence[str],
    deltas: Sequence[str],
    order: Order,
    is_density: Callable[..., bool],
) -> dict[str, str]:
    owners = {name: name for name in (*auxiliaries, *deltas)}
    if not is_density(*owners):
        deltas = [name for name in deltas if order.may_descend(name, auxiliaries)]
    return owners | dict.fromkeys([*auxiliaries, *deltas] if deltas else (), auxiliaries[0])


def _is_density(on_model: Sites, on_guide: Sites) -> bool:
    """Whether the auxiliary sites have as many dimensions as the ``Delta`` sites together."""
    deltas = [name for name in on_model if name in on_guide and _is_delta(on_guide[name])]
    if not deltas:
        return True
    auxiliaries = [site for name, site in on_guide.items() if name not in on_model]
    needed = [_dimensions(on_guide[name], on_model[name]["fn"]) for name in deltas]
    held = [
        _dimensions(site, site["fn"])
        for site in auxiliaries
        if not _is_delta(site) and not site_is_factor(site)
    ]
    return needed == held or _total(needed) == _total(held)


def _is_delta(site: Any) -> bool:
    return has_base(site["fn"], Delta)


def _total(dimensions: Sequence[Dimensions]) -> Dimensions:
    return sum(discrete for discrete, _ in dimensions), sum(other for _, other in dimensions)


def _dimensions(site: Any, fn: Any) -> Dimensions:
    """How many discrete and continuous coordinates a value has, constraints taken off."""
    shape = site["value"].shape
    try:
        support = fn.support
        if support.is_discrete:
            return shape.numel(), 0
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        shape = biject_to(support).inverse_shape(shape) if support.event_dim else shape
        return 0, shape.numel()
    except NotImplementedError:
        return 0, shape.numel()


def _role(name: str, on_model: Mapping[str, Any], on_guide: Mapping[str, Any]) -> str:
    if name not in on_model and on_model:
        return "joint"
    if not on_model and all(site_is_factor(site) for site in on_guide.values()):
        return "factor"
    if on_guide.keys() == {name} == on_model.keys() and has_base(on_guide[name]["fn"], Delta):
        return "map"
    return "latent"

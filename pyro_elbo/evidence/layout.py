"""How a program's evidence falls apart: the plates with data of their own, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..elbo.dependencies import Program
from ..elbo.traces import sample_sites
from ..errors import UnsupportedSiteError
from ..site_terms import SiteTerms, subsampling
from ..terms import ELBOTerms

__all__ = ["Layout", "joint_layout", "layout_of"]


@dataclass(frozen=True, eq=False)
class Layout:
    """The factors of the evidence.

    Args:
        plates: The plates whose data are independent, given what is outside of them.
        inside: The groups of sites inside of all of them.
        outside: The other groups.
        shared: The guide's sites outside.
        local: The guide's sites inside.
        frames: Pyro's frame of every plate.
        indices: The indices that one run drew of each subsampled plate.
        why_joint: Why the data have one weight, where plates would give each its own.
    """

    plates: tuple[str, ...]
    inside: tuple[str, ...]
    outside: tuple[str, ...]
    shared: frozenset[str]
    local: frozenset[str]
    frames: Mapping[str, Any]
    indices: Mapping[str, Tensor]
    why_joint: str = ""

    @property
    def subsampled(self) -> str | None:
        """The plate of which one run sees a part."""
        return next((name for name in self.plates if subsampling(self.frames[name]) != 1), None)

    @property
    def scale(self) -> float:
        """What one datum of a run counts."""
        return subsampling(self.frames[self.subsampled]) if self.subsampled else 1.0

    @property
    def nesting(self) -> int:
        """The deepest plate."""
        return max((-(frame.dim or 0) for frame in self.frames.values()), default=0)


def layout_of(program: Program, pair: Any, terms: ELBOTerms, plate: str | None) -> Layout:
    """Find the factors of a program's evidence.

    Args:
        program: The model and the guide.
        pair: The traces of one evaluation with one particle.
        terms: Its terms.
        plate: The plate with independent data; by default the one inside of which the latents are.

    Raises:
        ValueError: No site is inside the plate.
        UnsupportedSiteError: The plates do not make independent factors.
    """
    sites = terms.sites
    frames = _frames(pair)
    plates = _found(sites.values(), frames) if plate is None else _named(plate, sites)
    inside = [name for name, site in sites.items() if plates and plates <= set(site.plates)]
    outside = [name for name in sites if name not in inside]
    guide_names = sample_sites(pair[1]).keys()
    local, shared = (
        frozenset(name for group in groups for name in sites[group].members) & guide_names
        for groups in (inside, outside)
    )
    _check_subsampling(sites, frames, plates)
    _check_coupled(sites, pair, frames, outside)
    if inside and outside:
        members = [name for group in inside for name in sites[group].members]
        _check_order(program, pair, set(members))
    ordered = tuple(name for name in frames if name in plates)
    indices = {name: value for name, value in terms.indices.items() if value is not None}
    return Layout(ordered, tuple(inside), tuple(outside), shared, local, frames, indices)


def joint_layout(layout: Layout, pair: Any, terms: ELBOTerms, plate: str | None) -> Layout:
    """The layout of data that depend on one another's latents: one weight for all of them.

    Args:
        layout: The layout of independent data.
        pair: The traces of one evaluation.
        terms: Its terms.
        plate: The plate that was said to have independent data, if one was.

    Raises:
        UnsupportedSiteError: The plate was named, or is subsampled.
    """
    why = (
        f"the weight of a datum in plate {layout.plates[-1]!r} depends on the latents of another "
        f"({', '.join(sorted(layout.local))})"
    )
    if plate is not None or layout.subsampled is not None:
        raise UnsupportedSiteError(
            min(layout.local),
            why,
            "give the full data, and no plate=, so that all data have one weight",
        )
    names = tuple(terms.sites)
    guide = frozenset(sample_sites(pair[1]))
    return Layout((), (), names, guide, frozenset(), layout.frames, layout.indices, why)


def _check_coupled(
    sites: Mapping[str, SiteTerms], pair: Any, frames: Mapping[str, Any], outside: Iterable[str]
) -> None:
    """A density of data in a subsampled plate that is no product over them cannot be scaled up."""
    drawn = {name for name, frame in frames.items() if subsampling(frame) != 1}
    nodes = {**pair[1].nodes, **pair[0].nodes}
    for group in outside if drawn else ():
        members = [name for name in sites[group].members if name in nodes]
        of_plate = {f.name for name in members for f in nodes[name]["cond_indep_stack"]} & drawn
        if of_plate:
            summed = [n for n in members if nodes[n]["infer"].get("_enumerate_dim") is not None]
            raise UnsupportedSiteError(
                min(summed or members),
                f"it ties the data of plate {min(of_plate)!r} together, so that a minibatch gives "
                "no bound of their evidence",
                "give the full data (subsample_size=None), or sample it in the guide",
            )


def _frames(pair: Any) -> dict[str, Any]:
    """Every plate, left to right, those that go one by one last."""
    sites = [site for trace in pair for site in sample_sites(trace).values()]
    frames = {frame.name: frame for site in sites for frame in site["cond_indep_stack"]}
    return dict(sorted(frames.items(), key=lambda item: item[1].dim or 0))


def _found(sites: Iterable[SiteTerms], frames: Mapping[str, Any]) -> set[str]:
    sites = list(sites)
    of_data = [set(site.plates) for site in sites if site.beta is None]
    shared = set.intersection(*of_data) if of_data else set(frames)
    wanted = [set(site.plates) & shared for site in sites if site.beta is not None] or [shared]
    wanted = [plates for plates in wanted if plates]
    wanted += [{name} for name, frame in frames.items() if subsampling(frame) != 1]
    return set.intersection(*wanted) if wanted else set()


def _named(plate: str, sites: Mapping[str, SiteTerms]) -> set[str]:
    known = sorted({name for site in sites.values() for name in site.plates})
    if plate not in known:
        raise ValueError(f"no site is inside a plate {plate!r}; the plates are: {known}")
    for name, site in sites.items():
        if plate in site.member_plates and plate not in site.plates:
            raise UnsupportedSiteError(
                name,
                f"the density of {', '.join(site.members)} sits in one site outside of plate "
                f"{plate!r}, so no datum has weights of its own",
                "use a guide that samples inside the plate, such as AutoNormal, or plate=None",
            )
    return {plate}


def _check_subsampling(
    sites: Mapping[str, SiteTerms], frames: Mapping[str, Any], plates: set[str]
) -> None:
    subsampled = [name for name, frame in frames.items() if subsampling(frame) != 1]
    if not subsampled:
        return
    if len(subsampled) > 1 or not set(subsampled) <= plates:
        raise ValueError(
            f"the plates {subsampled} are subsampled, and the evidence of the whole data is no sum "
            "over them; give the model the full data (subsample_size=None)"
        )


def _check_order(program: Program, pair: Any, inside: set[str]) -> None:
    """Nothing outside of the plates may depend on what is sampled inside of them."""
    model, guide = (list(sample_sites(trace)) for trace in pair)
    suspects = [_after(names, inside) for names in (model, guide)]
    if not any(suspects):
        return
    for names, parents in zip(suspects, program.trace_parents(*pair), strict=True):
        for name in names:
            if name not in parents or parents[name] & inside:
                raise UnsupportedSiteError(
                    name,
                    "it is outside of the plates whose data are taken to be independent, and may "
                    f"depend on {', '.join(sorted(inside))} inside of them",
                    "put it into the plate, or name another with plate=",
                )


def _after(names: Sequence[str], inside: set[str]) -> list[str]:
    first = next((at for at, name in enumerate(names) if name in inside), len(names))
    return [name for name in names[first:] if name not in inside]

"""The latents inside the data plate, as one run of the guide and the model shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_factor, site_is_subsample

from ..elbo import LatentSite, TraceKL_ELBO
from ..elbo.dependencies import Parents, Program
from ..elbo.same_minibatches import SameMinibatches
from ..elbo.traces import sample_sites
from ..errors import UnsupportedSiteError
from ..site_terms import SiteTerms
from ..terms import ELBOTerms
from ..weighting import unweighted
from .aggregate import PerDatum

__all__ = ["Latent", "NoLatentPerDatumError", "Run", "runs"]


class NoLatentPerDatumError(ValueError):
    """No latent is inside a plate of observed sites."""


_PER_DATUM = "sample it inside of the plate, as AutoNormal does"


@dataclass(frozen=True, eq=False)
class Latent:
    """One latent inside the data plate.

    Args:
        site: The latent with its guide's and its model's distributions.
        terms: Its terms, without plate or user scales.
        plate: Name of the data plate.
    """

    site: LatentSite
    terms: SiteTerms
    plate: str

    @property
    def name(self) -> str:
        """The model's site."""
        return self.site.name

    @property
    def density(self) -> Any:
        """The guide's site that holds the density: the latent's, or its auxiliary's."""
        if self.site.density is not None:
            return self.site.density
        return next(site for name, site in self.site.guide_sites.items() if name != self.name)

    @property
    def is_direct(self) -> bool:
        """Whether :attr:`density` is that of the latent itself, not of a transform of it."""
        return self.site.density is not None

    @cached_property
    def guide(self) -> PerDatum:
        """The guide's distribution of each datum, in pieces; of :attr:`density`."""
        return PerDatum.of(self.site.guide if self.is_direct else self.density["fn"], self.dim)

    @cached_property
    def prior(self) -> PerDatum | None:
        """The model's distribution of each datum, in pieces, if the latent has one of its own."""
        prior = self.site.prior
        return None if prior is None else PerDatum.of(prior["fn"], self.dim)

    @property
    def dim(self) -> int:
        """The plate's dim, counted from the right of a batch shape."""
        return int(self.terms.frame(self.plate).dim)

    @property
    def splits(self) -> bool:
        """Whether guide and prior are independent over the dims of the event."""
        sides = (self.guide, self.prior) if self.is_direct else (None,)
        return all(side is not None and side.factorises for side in sides)


@dataclass(frozen=True, eq=False)
class Run:
    """One run of the guide, and of the model at its samples, both without scales.

    Args:
        terms: The terms of the bound.
        latents: The latents by name.
        pair: The traces of the model and of the guide.
        program: The model, the guide and their arguments.
    """

    terms: ELBOTerms
    latents: Mapping[str, LatentSite]
    pair: tuple[Any, Any]
    program: Program

    def find(self, plate: str | None, site: str | None) -> tuple[Latent, ...]:
        """The latents inside a plate.

        Args:
            plate: Its name; by default the one plate that latents share with observed sites.
            site: One latent; by default all.

        Raises:
            ValueError: There is no such plate or site, or more than one plate; or a KL to the prior
                is nan or infinite.
            UnsupportedSiteError: A latent has no distribution for each datum.
        """
        plate = self._plate(plate)
        inside = [name for name in self.latents if plate in self.terms.sites[name].member_plates]
        if site is not None:
            owners = [name for name in inside if site in (name, *self.latents[name].members)]
            if not owners:
                raise ValueError(
                    f"site={site!r} is no latent inside plate {plate!r}; the latents are: {inside}"
                )
            inside = owners
        return tuple(self._latent(name, plate) for name in inside)

    def why_dependent(self, latent: Latent) -> str | None:
        """Why the guide's distribution may hang on other samples than the data; else ``None``."""
        sites = sample_sites(self.pair[1])
        drawn = {name for name, site in sites.items() if not site_is_factor(site)}
        others = drawn - set(latent.site.guide_sites)
        return _why_dependent("guide", self._parents[1], latent.density["name"], others)

    def why_prior_dependent(self, latent: Latent) -> str | None:
        """Why the prior may hang on other latents; else ``None``."""
        if latent.site.marginal is not None:
            return f"its prior in the model depends on {list(latent.site.marginal.enumerated)}"
        sites = sample_sites(self.pair[0])
        others = {name for name, site in sites.items() if not site["is_observed"]} - {latent.name}
        return _why_dependent("model", self._parents[0], latent.name, others)

    @cached_property
    def _parents(self) -> tuple[Parents, Parents]:
        return self.program.trace_parents(*self.pair)

    def _plate(self, plate: str | None) -> str:
        sites = self.terms.sites
        on_latents = {name for latent in self.latents for name in sites[latent].member_plates}
        if plate is not None and plate not in on_latents:
            raise ValueError(
                f"no latent is inside a plate {plate!r}; the plates of the latents are: "
                f"{sorted(on_latents)} (a sequential `for i in pyro.plate(...)` is none: vectorise "
                "it, with pyro.plate(...):)"
            )
        if plate is not None:
            return plate
        observed = [site for site in sites.values() if site.role in ("observed", "factor")]
        shared = on_latents & {name for site in observed for name in site.member_plates}
        if len(shared) != 1:
            kind = ValueError if shared else NoLatentPerDatumError
            raise kind(
                f"latents and observed sites share {len(shared) or 'no'} plates"
                f"{': ' + str(sorted(shared)) if shared else ''}, so the plate of the data is not "
                f"known; name it, plate=... (the plates of the latents are: {sorted(on_latents)})"
            )
        return shared.pop()

    def _latent(self, name: str, plate: str) -> Latent:
        site, terms = self.latents[name], self.terms.sites[name]
        if site.role == "map":
            raise UnsupportedSiteError(
                name, "the guide has a point mass there", "give it a density, as AutoNormal does"
            )
        if site.role != "latent" or plate not in terms.plates:
            latents = ", ".join(sorted(site.prior_sites)) or name
            why = f"the guide has no distribution of its own for each datum of {latents}"
            raise UnsupportedSiteError(name, why, _PER_DATUM)
        both = (*site.prior_sites.values(), *site.guide_sites.values())
        masks = [unweighted(part)[1] for part in both]
        if not all(mask is None or mask is True for mask in masks):
            remedy = "pass the data that have the latent, without a mask"
            raise UnsupportedSiteError(name, "it is masked, so some data have none", remedy)
        _check_finite(terms)
        return Latent(site, terms, plate)


def runs(program: Program, count: int) -> list[Run]:
    """Independent runs of a program over the same data, without scales or gradients."""
    sampled = replace(program, guide=poutine.infer_config(program.guide, _not_enumerated))
    with _Plain():
        probe = _Probe()
        return [probe.run(sampled) for _ in range(count)]


class _Probe(TraceKL_ELBO):
    """A loss that keeps the latents and the traces it saw."""

    def run(self, program: Program) -> Run:
        self.latents: dict[str, LatentSite] = {}
        terms = self.decompose(program.model, program.guide, *program.args, **program.kwargs)
        return Run(terms, self.latents, self.pair, program)

    def closed_form(self, site: LatentSite) -> Any:
        if site.role != "factor":
            self.latents[site.name] = site
        return "kl"

    def _get_trace(self, *args: Any) -> tuple[Any, Any]:
        self.pair = super()._get_trace(*args)
        return self.pair


class _Plain(SameMinibatches):
    """Takes off every scale, and keeps the minibatches of the first run."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if not site_is_subsample(msg):
            msg["scale"] = 1.0


def _check_finite(terms: SiteTerms) -> None:
    bad = terms.kl[~terms.kl.isfinite()]
    if len(bad):
        kind = "nan" if bad.isnan().any() else "infinite"
        raise ValueError(
            f"site {terms.name!r}: its KL to the prior is {kind} in {len(bad):,} of "
            f"{terms.kl.numel():,} places; check the data, the parameters of guide and model, and "
            "whether the prior's support has all of the guide's"
        )


def _not_enumerated(site: Any) -> Any:
    return {"enumerate": None}


def _why_dependent(side: str, parents: Parents, name: str, others: set[str]) -> str | None:
    if not others:
        return None
    if name not in parents:
        return f"the {side} could not be tracked, so it may depend on {sorted(others)}"
    found = sorted(parents[name])
    return f"its distribution in the {side} depends on {found}" if found else None

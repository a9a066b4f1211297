"""A program's log weights, factor by factor, in chunks of samples and in minibatches of data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from ..elbo.dependencies import Program
from ..elbo.traces import sample_sites
from ..errors import UnsupportedSiteError
from ..site_terms import SiteTerms
from ..terms import ELBOTerms
from .layout import Layout, joint_layout, layout_of
from .probing import Ratios, data_are_independent, given, runs_at_once
from .ratios import RatioELBO, sampled

__all__ = ["Batch", "Weigher"]

ONE_BY_ONE = (
    "the program gives other numbers at many samples at once than at each alone (it indexes or "
    "sums from the left, as in w[0] or z.sum(0), or puts a dim where the samples have theirs), so "
    "that they are evaluated one by one; count dims from the right, as in w[..., 0], to have it "
    "faster, by up to the number of samples"
)


@dataclass(frozen=True, eq=False)
class Batch:
    """A part of the data.

    Args:
        indices: The indices of the subsampled plate.
        kept: How many of them count; the others fill the batch.
        dim: The dim of that plate among the layout's, particles included.
        shared: Samples of the latents that all data share, once there are some.
    """

    indices: Mapping[str, Tensor]
    kept: int | None = None
    dim: int = 1
    shared: dict[str, Any] = field(default_factory=dict)

    def keep(self, values: Tensor) -> Tensor:
        """Drop what only fills the batch."""
        return values if self.kept is None else values.narrow(self.dim, 0, self.kept)


class Weigher:
    """Evaluates the log-ratios of a model and a guide at given arguments.

    Args:
        model: The model.
        guide: The guide.
        args: What both take.
        kwargs: What both take.
        plate: The plate with independent data, where it is named.

    The attribute ``zeros`` has the sites at which weights were 0.
    """

    def __init__(self, model: Any, guide: Any, args: Any, kwargs: Any, plate: str | None) -> None:
        for name, program in (("model", model), ("guide", guide)):
            if not callable(program):
                raise TypeError(
                    f"the {name} must be a Pyro program, not {program!r}; evidence.Enumeration "
                    "needs no guide, nor does AnnealedImportance(start='prior')"
                )
        self.zeros: dict[str, None] = {}
        self.program = Program(model, sampled(guide), args, kwargs)
        probe = RatioELBO(1, float("inf"))
        terms = self._terms(probe)
        self.layout: Layout = layout_of(self.program, probe.pair, terms, plate)
        self.at_once = self._probe(probe.pair, terms, plate)
        self.guide_sites = sample_sites(probe.pair[1])
        sites = [site for trace in probe.pair for site in sample_sites(trace).values()]
        self.rows = max((torch.as_tensor(site["value"]).numel() for site in sites), default=1)

    def run(self, count: int, repeats: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """The log-ratios of new samples.

        Args:
            count: Samples of the latents that all data share.
            repeats: Samples of the others for each of them.
            batch: The data; its ``shared`` samples are taken, or filled where there are none.

        Returns:
            Those outside of the plates, shape ``[count]``, and those inside, shape
            ``[count, repeats, *plates]``.
        """
        if not self.at_once:
            return self._one_by_one(count, repeats, batch)
        choose = Choice(self.layout.shared, repeats, batch)
        ratios = self._ratios(RatioELBO(count * repeats, self.layout.nesting, choose))
        inside = ratios.inside
        return ratios.outside[::repeats], inside.reshape(count, repeats, *inside.shape[1:])

    def _one_by_one(self, count: int, repeats: int, batch: Batch) -> tuple[Tensor, Tensor]:
        outside, inside = [], []
        for sample in range(count):
            shared = batch.shared.setdefault(str(sample), {})
            choose = Choice(self.layout.shared, 1, replace(batch, shared=shared))
            for _ in range(repeats):
                ratios = self._ratios(RatioELBO(1, self.layout.nesting, choose))
                inside.append(ratios.inside)
            outside.append(ratios.outside)
        stacked = torch.cat(inside)
        return torch.cat(outside), stacked.reshape(count, repeats, *stacked.shape[1:])

    def _ratios(self, elbo: RatioELBO, *, checked: bool = True) -> Ratios:
        terms = self._terms(elbo)
        outside = _total(terms, self.layout.outside, ())
        inside = _total(terms, self.layout.inside, self.layout.plates)
        if checked:
            self._check_finite(terms, outside, inside)
        return Ratios(outside, inside, sample_sites(elbo.pair[1]))

    def _probe(self, pair: Any, terms: ELBOTerms, plate: str | None) -> bool:
        """Whether samples can be evaluated at once; data that depend share one weight."""
        choose = Choice(frozenset(), 1, Batch(self.layout.indices))
        run = partial(self._ratios, checked=False)
        state = get_rng_state()
        try:
            if not data_are_independent(run, self.layout, choose):
                self.layout = joint_layout(self.layout, pair, terms, plate)
            at_once = runs_at_once(run, self.layout, choose)
        finally:
            set_rng_state(state)
        if not at_once:
            warnings.warn(ONE_BY_ONE, UserWarning, stacklevel=4)
        return at_once

    @torch.no_grad()
    def constant(self, batch: Batch) -> Tensor:
        """What is outside of the plates, where that is no latent: a 0-dim tensor."""
        return self.run(1, 1, batch)[0][0]

    def batches(self) -> list[Batch]:
        """The data, in minibatches that cover them where the program can reach them.

        Raises:
            UnsupportedSiteError: It cannot, and data share a latent.
        """
        plate = self.layout.subsampled
        if plate is None:
            return [Batch({})]
        covering = self._covering(plate)
        if len(covering) > 1 and self._data_differ(covering):
            return covering
        if self.layout.shared:
            raise UnsupportedSiteError(
                min(self.layout.shared),
                f"all data share it, and one minibatch of plate {plate!r} gives no bound of their "
                "evidence; the others cannot be reached, because the model's data do not follow "
                "the plate's indices",
                f"give the full data and take them by the indices inside the model, with "
                f"pyro.plate({plate!r}, ...) as indices: data[indices]",
            )
        return [Batch(self.layout.indices)]

    def _covering(self, plate: str) -> list[Batch]:
        frame = self.layout.frames[plate]
        if plate not in self.layout.indices:
            return []
        dim = 1 + self.layout.plates.index(plate)
        everything = torch.arange(frame.full_size, device=self.layout.indices[plate].device)
        return [
            Batch({plate: torch.cat([part, everything[: frame.size - len(part)]])}, len(part), dim)
            for part in everything.split(frame.size)
        ]

    def _data_differ(self, batches: list[Batch]) -> bool:
        """Whether the model, at the same latents, has other data or densities at other indices."""
        pair = self._traces(Choice(frozenset(), 1, batches[0]))
        latents = {name: site["value"] for name, site in sample_sites(pair[1]).items()}
        first, *others = (self._data(given(batch.indices, latents)) for batch in batches)
        return any(_differ(first, other) for other in others)

    def _data(self, choose: Callable[[Any], Any]) -> dict[str, Any]:
        sites = sample_sites(self._traces(choose)[0]).items()
        values = {name: site["value"] for name, site in sites if site["is_observed"]}
        densities = {f"density of {n}": s["fn"].log_prob(s["value"]) for n, s in sites}
        return values | densities

    def _traces(self, choose: Callable[[Any], Any]) -> Any:
        elbo = RatioELBO(1, float("inf"), choose)
        self._terms(elbo)
        return elbo.pair

    def _check_finite(self, terms: ELBOTerms, *ratios: Tensor) -> None:
        if any(bool((ratio.isnan() | (ratio == torch.inf)).any()) for ratio in ratios):
            raise ValueError(
                f"a weight p(x, z) / q(z) is infinite or nan, from the sites {_infinite(terms)}, "
                "so the weights have no mean; check their parameters, supports and data"
            )
        if any(bool((ratio == -torch.inf).any()) for ratio in ratios):
            self.zeros.update(dict.fromkeys(_infinite(terms)))

    def _terms(self, elbo: RatioELBO) -> ELBOTerms:
        program = self.program
        return elbo.ratios(program.model, program.guide, program.args, program.kwargs)


class Choice:
    """Which values the guide's sites take: one for each group of particles where data share it."""

    def __init__(self, shared: frozenset[str], repeats: int, batch: Batch) -> None:
        self.shared, self.repeats, self.batch = shared, repeats, batch

    def __call__(self, msg: Any) -> Any:
        name, values = msg["name"], self.batch.shared
        if name in self.batch.indices:
            return self.batch.indices[name]
        if name not in self.shared:
            return None
        if name not in values:
            value = msg["fn"](*msg["args"], **msg["kwargs"])
            if self.repeats > 1:
                value = value[:: self.repeats].repeat_interleave(self.repeats, 0)
            values[name] = value
        return values[name]


def _total(terms: ELBOTerms, names: tuple[str, ...], plates: tuple[str, ...]) -> Tensor:
    zero = terms.objective.new_zeros(terms.num_particles)
    ratios: Any = [_log_ratio(terms.sites[name], plates) for name in names]
    return sum(ratios, start=zero.reshape(-1, *[1] * len(plates)))


def _log_ratio(site: SiteTerms, plates: tuple[str, ...]) -> Any:
    parts = ("log_likelihood", "log_prior", "log_guide")
    likelihood, prior, guide = (site.per_particle(part, plates) for part in parts)
    return likelihood + prior - guide


def _infinite(terms: ELBOTerms) -> list[str]:
    return [
        name
        for name, site in terms.sites.items()
        if any(not bool(atom.value.isfinite().all()) for atom in site.atoms)
    ]


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() != other.keys() or any(not _equal(one[name], other[name]) for name in one)


def _equal(a: Any, b: Any) -> bool:
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())

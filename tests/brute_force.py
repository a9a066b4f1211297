"""The bound of a program by its definition: entry by entry, over all joint values at once.

Every entry of every site is a variable of its own, and every variable that is summed has a dim of
its own, the guide's on the right, those that the model sums out to the left of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from forced_draws import HERMITE, TWO_POINT
from programs import LOOP, VALUES, Program, Site
from torch import Tensor

Key = tuple[str, int]
Place = tuple[int, int, int]


class RefusedError(Exception):
    """The program has no value under its weight, or is outside of what is defined."""


@dataclass
class Exact:
    """The exact terms of each site in the trace: differentiable, unweighted, over all its entries.

    What the model sums out is there as a group, ``"sum 0"``.
    """

    log_likelihood: dict[str, Tensor] = field(default_factory=dict)
    log_prior: dict[str, Tensor] = field(default_factory=dict)
    log_guide: dict[str, Tensor] = field(default_factory=dict)
    betas: dict[str, float] = field(default_factory=dict)

    @property
    def objective(self) -> Tensor:
        """What is maximised."""
        parts = [self.log_likelihood.values()]
        for sign, side in ((1, self.log_prior), (-1, self.log_guide)):
            parts.append([sign * self.betas[name] * value for name, value in side.items()])
        return _total(itertools.chain(*parts))

    def terms(self) -> dict[str, Tensor]:
        """The totals under the names that a record of terms has."""
        rec = _total(self.log_likelihood.values())
        prior, guide = _total(self.log_prior.values()), _total(self.log_guide.values())
        return {
            "reconstruction": rec,
            "expected_log_prior": prior,
            "expected_log_joint": rec + prior,
            "entropy": -guide,
            "kl": guide - prior,
            "elbo": rec + prior - guide,
            "objective": self.objective,
            "weighted_kl": rec - self.objective,
        }


def _total(values: Iterable[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros(()))


def brute_force(program: Program, particle: int = 0) -> Exact:
    """The exact terms of a program, at the noise of one particle.

    Raises:
        RefusedError: The weight or the scales leave them undefined.
    """
    return _Evaluation(program, particle).exact()


class _Evaluation:
    def __init__(self, program: Program, particle: int) -> None:
        self.program, self.particle = program, particle
        self.num_dims = 0
        self.values: dict[Any, Tensor] = {}
        self.weight = torch.ones(())

    def exact(self) -> Exact:
        program, exact = self.program, Exact()
        for name, step in program.visits("guide"):
            site = program.sites[name]
            exact.log_guide[site.called(step)] = _total(self._densities("guide", site, step))
            exact.betas[site.called(step)] = program.weight(site.called(step))
        guide_dims, groups = self.num_dims, []
        for name, step in program.visits("model"):
            site = program.sites[name]
            keys = program.parent_keys("model", site, step).values()
            summed = {key for key in keys if self._sums(key)}
            summed |= {(name, step)} if site.role == "summed" else set()
            densities = self._densities("model", site, step, scaled=not summed)
            if summed:
                groups = _joined(groups, _Group(summed, [(site, step, densities)]))
                continue
            part = exact.log_prior if site.role == "latent" else exact.log_likelihood
            part[site.called(step)] = _total(densities)
        for place, group in enumerate(groups):
            self._add_group(exact, f"sum {place}", group, guide_dims)
        for part in (exact.log_likelihood, exact.log_prior, exact.log_guide):
            part.update({name: (self.weight * value).sum() for name, value in part.items()})
        return exact

    def _plates(self, key: Key) -> frozenset[str]:
        return self.program.sites[key[0]].plates - {LOOP}

    def _enumerated(self, site: Site, step: int) -> set[Key]:
        """The sites enumerated by the guide that a density of the model depends on."""
        keys = [*self.program.parent_keys("model", site, step).values(), (site.name, step)]
        return set().union(*(self._carried(key) for key in keys))

    def _in_sequence(self) -> Iterator[Key]:
        return (k for k in self.program.visits("guide") if self._how(k) == "sequential")

    def _how(self, key: Key) -> str:
        return self.program.sites[key[0]].how

    def _carried(self, key: Key) -> set[Key]:
        site = self.program.sites[key[0]]
        if "guide" not in site.parents:
            return set()
        if site.is_discrete and site.how != "draw":
            return {key}
        parents = self.program.parent_keys("guide", site, key[1]).values()
        return set().union(*map(self._carried, parents))

    def _sums(self, key: Key) -> bool:
        return self.program.sites[key[0]].role == "summed"

    def _densities(self, side: str, site: Site, step: int, scaled: bool = True) -> list[Tensor]:
        """The log-density of each entry, under its own mask, and scale where asked."""
        densities = []
        for place in self.program.places(site, step):
            log_density = self._log_density(side, site, step, place)
            if site.role != "summed":
                log_density = log_density * float(_at(site.masks.get(side, True), place))
            scale = self._scale(side, site, place) if scaled else 1.0
            densities.append(log_density * scale)
        return densities

    def _log_density(self, side: str, site: Site, step: int, place: Place) -> Tensor:
        program = self.program
        keys = program.parent_keys(side, site, step)
        parents = {
            parent: self.values[(*key, self._project(key, place))] for parent, key in keys.items()
        }
        base = program.parameter(side, site, "base")[place]
        fn = program.density(side, site, program.predictor(side, site, base, parents))
        if site.kind == "factor":
            return fn
        if site.role == "observed":
            return fn.log_prob(program.data[site.name][place])
        key = (site.name, step, self._project((site.name, step), place))
        if key not in self.values:
            self.values[key] = self._variable(site, fn, place)
        return fn.log_prob(self.values[key])

    def _project(self, key: Key, place: Place) -> tuple[int, int]:
        plates = self.program.sites[key[0]].plates
        return (place[1] if "b" in plates else 0, place[2] if "a" in plates else 0)

    def _variable(self, site: Site, fn: Any, place: Place) -> Tensor:
        """All values of one entry; at the guide's, their probabilities enter the weight."""
        if site.is_discrete:
            value = self._new_dim(torch.arange(VALUES[site.kind]))
            if site.role != "summed":
                self.weight = self.weight * fn.log_prob(value.double()).exp()
            return value.double() if site.kind == "bernoulli" else value
        if site.how == "pathwise" and not self.program.two_point:
            noise = self.program.noise[site.name][self.particle][place]
        else:
            nodes, weights = TWO_POINT if site.how == "pathwise" else HERMITE
            noise = self._new_dim(nodes)
            self.weight = self.weight * weights.reshape(noise.shape)
        value = fn.loc + fn.scale * noise
        return value.exp() if site.kind == "lognormal" else value

    def _new_dim(self, values: Tensor) -> Tensor:
        self.num_dims += 1
        return values.reshape((-1,) + (1,) * (self.num_dims - 1))

    def _scale(self, side: str, site: Site, place: Place) -> float:
        plates = (len(self.program.indices[n]) / self.program.sizes[n] for n in site.plates)
        own = float(_at(site.scales.get(side, 1.0), place))
        return own * self.program.side_scales[side] / math.prod(plates)

    def _add_group(self, exact: Exact, name: str, group: _Group, guide_dims: int) -> None:
        scales = {
            self._scale("model", site, place)
            for site, step, _ in group.members
            for place in self.program.places(site, step)
        }
        if max(scales) - min(scales) > 1e-9:
            raise RefusedError(f"scales {scales}")
        scale = max(scales)
        plates = frozenset.intersection(*(self._plates(key) for key in group.summed))
        for site, step, _ in group.members:
            inside = {key for key in self._in_sequence() if self._plates(key) <= site.plates}
            if any(not self._plates(k) <= plates for k in self._enumerated(site, step) | inside):
                raise RefusedError("the sum may couple the entries of a plate")
        latents = [m for m in group.members if m[0].role == "latent"]
        summed = [m for m in group.members if m[0].role == "summed"]
        betas = {self.program.weight(site.called(step)) for site, step, _ in latents}
        mixed = len(latents) + len(summed) < len(group.members)
        if latents:
            if mixed and betas != {1.0}:
                raise RefusedError(f"weights {betas}")
            exact.log_prior[name] = scale * _log_sum(summed + latents, guide_dims)
            (exact.betas[name],) = betas
        if mixed or not latents:
            joint = scale * _log_sum(group.members, guide_dims)
            exact.log_likelihood[name] = joint - exact.log_prior.get(name, 0.0)


@dataclass
class _Group:
    """Sites that hang on the same summed ones, with the log-densities of their entries."""

    summed: set[Key]
    members: list[tuple[Site, int, list[Tensor]]]


def _joined(groups: list[_Group], new: _Group) -> list[_Group]:
    apart = [group for group in groups if group.summed.isdisjoint(new.summed)]
    for group in groups:
        if group not in apart:
            new = _Group(group.summed | new.summed, group.members + new.members)
    return [*apart, new]


def _log_sum(members: Iterable[tuple[Site, int, list[Tensor]]], guide_dims: int) -> Tensor:
    total = _total(itertools.chain(*(densities for _, _, densities in members)))
    summed = list(range(total.dim() - guide_dims))
    return total.logsumexp(summed) if summed else total


def _at(entries: Any, place: Place) -> Any:
    return entries[place] if isinstance(entries, Tensor) else entries

"""Small programs as data: what every site is, and the Pyro program that this makes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

VALUES = {"bernoulli": 2, "categorical": 3}
SIDES = {
    "latent": ("model", "guide"),
    "observed": ("model",),
    "factor": ("model",),
    "summed": ("model",),
    "auxiliary": ("guide",),
    "guide factor": ("guide",),
}
LOOP = "loop"
DIMS = {"b": -2, "a": -1}
Parent = tuple[str, int]


@dataclass
class Site:
    """One site of a program; everything shaped ``(loop, plate b, plate a)`` is over all data.

    Args:
        name: Its name; inside the loop, that of step t is ``name_t``.
        role: ``"latent"``, ``"observed"``, ``"factor"``, ``"summed"`` (enumerated by the model),
            ``"auxiliary"`` or ``"guide factor"``.
        kind: ``"normal"``, ``"lognormal"``, ``"bernoulli"``, ``"categorical"`` or ``"factor"``.
        how: How the guide has its value: ``"pathwise"``, ``"draw"``, ``"parallel"`` or
            ``"sequential"``; at a guide factor, ``"draw"`` if it has no reparameterised sample.
        plates: The plates that it is in, the loop included.
        parents: On each side ``(site, lag)`` of what it depends on.
        masks: The mask on each side, if any.
        scales: The scale on each side, if any.
    """

    name: str
    role: str
    kind: str
    how: str
    plates: frozenset[str]
    parents: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    masks: dict[str, Any] = field(default_factory=dict)
    scales: dict[str, Any] = field(default_factory=dict)

    @property
    def has_value(self) -> bool:
        """Whether other sites may depend on it."""
        return self.role in ("latent", "summed", "auxiliary")

    @property
    def is_discrete(self) -> bool:
        return self.kind in VALUES

    def called(self, step: int) -> str:
        """Its name in the trace."""
        return f"{self.name}_{step}" if LOOP in self.plates else self.name


@dataclass
class Program:
    """A model and a guide.

    Args:
        sites: The sites by name.
        orders: The names on each side in order, those in the loop next to each other.
        sizes: The size of each plate and of the loop.
        indices: The indices of the data that each plate and the loop see.
        loop: ``"plate"`` (a sequential one), ``"markov"`` or ``None``.
        side_scales: A scale around each side.
        beta: The weight, or the weights by name of the trace.
        options: What the losses are made with.
        two_point: Whether reparameterised noise is -1 or 1, of which the closed forms of normal
            distributions are the mean; otherwise it is ``noise``.
        parameters: All parameters.
        data: The data by site.
        noise: The noise of each site and each of two particles.
    """

    sites: dict[str, Site]
    orders: dict[str, list[str]]
    sizes: dict[str, int]
    indices: dict[str, list[int]]
    loop: str | None
    side_scales: dict[str, float]
    beta: Any = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    two_point: bool = False
    parameters: dict[str, Tensor] = field(default_factory=dict)
    data: dict[str, Tensor] = field(default_factory=dict)
    noise: dict[str, Tensor] = field(default_factory=dict)

    @property
    def has_noise(self) -> bool:
        """Whether a sample is reparameterised."""
        return any(
            s.has_value and not s.is_discrete and s.how == "pathwise" for s in self.sites.values()
        )

    def model(self) -> None:
        self._run("model")

    def guide(self) -> None:
        self._run("guide")

    def steps(self, site: Site) -> range:
        """The steps of the loop that a site is in."""
        return range(len(self.indices[LOOP]) if LOOP in site.plates else 1)

    def shape(self, site: Site) -> tuple[int, ...]:
        """The size of the site's data."""
        return tuple(self.sizes[n] if n in site.plates else 1 for n in (LOOP, "b", "a"))

    def places(self, site: Site, step: int) -> Iterator[tuple[int, int, int]]:
        """Where in the data the entries of a site are, at one step."""
        seen = [self.indices[n] if n in site.plates else [0] for n in ("b", "a")]
        for place in itertools.product(*seen):
            yield (self._at(site, step), *place)

    def weight(self, name: str) -> float:
        """The weight of a latent, by its name in the trace."""
        return self.beta[name] if isinstance(self.beta, dict) else self.beta

    def parent_keys(self, side: str, site: Site, step: int) -> dict[Parent, tuple[str, int]]:
        """Name and step of each parent that is there."""
        keys = {}
        for name, lag in site.parents[side]:
            at = step - lag if LOOP in self.sites[name].plates else 0
            if at >= 0:
                keys[name, lag] = (name, at)
        return keys

    def visits(self, side: str) -> Iterator[tuple[str, int]]:
        """Name and step of each site in order."""
        for looped, names in itertools.groupby(self.orders[side], self._is_looped):
            block = list(names)
            steps = range(len(self.indices[LOOP]) if looped else 1)
            yield from ((name, step) for step in steps for name in block)

    def _is_looped(self, name: str) -> bool:
        return LOOP in self.sites[name].plates

    def predictor(
        self, side: str, site: Site, base: Tensor, parents: dict[Parent, Tensor]
    ) -> Tensor:
        """What a site's density depends on: linear in continuous parents, a table for others."""
        eta = base
        for (parent, lag), value in parents.items():
            weights = self.parameter(side, site, f"{parent} {lag}")
            kind = self.sites[parent].kind
            if kind in VALUES:
                eta = eta + weights[value.long()]
            else:
                eta = eta + weights * (value.log() if kind == "lognormal" else value)
        return eta

    def parameter(self, side: str, site: Site, what: str) -> Tensor:
        """A parameter; a factor without reparameterised samples has none that is learnt."""
        parameter = self.parameters[f"{side} {site.name} {what}"]
        return parameter.detach() if (site.kind, site.how) == ("factor", "draw") else parameter

    def density(self, side: str, site: Site, eta: Tensor) -> Any:
        """The distribution of a site; the log-density of a factor."""
        if site.kind == "factor":
            return 0.3 * eta - 0.1 * eta**2
        if site.kind == "bernoulli":
            return dist.Bernoulli(logits=eta)
        if site.kind == "categorical":
            return dist.Categorical(logits=torch.stack([0 * eta, eta, 0.5 - eta], -1))
        family = dist.Normal if site.kind == "normal" else dist.LogNormal
        return family(eta, self.parameter(side, site, "scale").exp())

    def _at(self, site: Site, step: int) -> int:
        return self.indices[LOOP][step] if LOOP in site.plates else 0

    def entries(self, site: Site, step: int, tensor: Any) -> Any:
        """What the site's plates see of a tensor over all data, in the shape of the plates."""
        if not isinstance(tensor, Tensor):
            return tensor
        rows, columns = (self.indices[n] if n in site.plates else [0] for n in ("b", "a"))
        entries = tensor[self._at(site, step)][rows][:, columns]
        depth = max((-DIMS[n] for n in site.plates - {LOOP}), default=0)
        return entries.reshape(entries.shape[2 - depth :])

    def _run(self, side: str) -> None:
        values: dict[Any, Tensor] = {}
        plates = {
            name: pyro.plate(name, self.sizes[name], len(self.indices[name]), dim=dim)
            for name, dim in DIMS.items()
        }
        with poutine.scale(scale=self.side_scales[side]):
            for looped, names in itertools.groupby(self.orders[side], self._is_looped):
                block = [self.sites[name] for name in names]
                for step, _ in enumerate(self._loop() if looped else range(1)):
                    for site in block:
                        self._sample(side, site, step, plates, values)

    def _loop(self) -> Any:
        steps = len(self.indices[LOOP])
        if self.loop == "markov":
            return pyro.markov(range(steps))
        return pyro.plate(LOOP, self.sizes[LOOP], steps)

    def _sample(
        self, side: str, site: Site, step: int, plates: dict[str, Any], values: dict[Any, Tensor]
    ) -> None:
        base = self.entries(site, step, self.parameter(side, site, "base"))
        keys = self.parent_keys(side, site, step)
        parents = {parent: values[key] for parent, key in keys.items()}
        fn = self.density(side, site, self.predictor(side, site, base, parents))
        name = site.called(step)
        with ExitStack() as stack:
            for plate in sorted(site.plates - {LOOP}):
                stack.enter_context(plates[plate])
            if side in site.masks:
                mask = self.entries(site, step, site.masks[side])
                stack.enter_context(poutine.mask(mask=mask))
            if side in site.scales:
                scale = self.entries(site, step, site.scales[side])
                stack.enter_context(poutine.scale(scale=scale))
            if site.kind == "factor":
                rsample = {"has_rsample": site.how != "draw"} if side == "guide" else {}
                pyro.factor(name, fn, **rsample)
            elif site.role == "observed":
                obs = self.entries(site, step, self.data[site.name])
                pyro.sample(name, fn, obs=obs)
            else:
                values[site.name, step] = self._drawn(side, site, name, fn)

    def _drawn(self, side: str, site: Site, name: str, fn: Any) -> Tensor:
        infer: dict[str, Any] = {"is_auxiliary": True} if site.role == "auxiliary" else {}
        if site.role == "summed":
            infer["enumerate"] = "parallel"
        elif side == "guide" and site.how in ("parallel", "sequential"):
            infer["enumerate"] = site.how
        if side == "guide" and not site.is_discrete and site.how == "draw":
            fn = fn.has_rsample_(False)
        return pyro.sample(name, fn, infer=infer)

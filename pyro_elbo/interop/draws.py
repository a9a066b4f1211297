"""Runs of a program for its draws: guide and model, posterior predictive, and prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor

from ..elbo.gap import TraceGap_ELBO
from ..elbo.sites import has_base
from ..elbo.traces import plate_indices, sample_sites
from ..site_terms import PARTICLES
from ..terms import ELBOTerms
from .layout import frames_of, laid_out

__all__ = ["Draws", "Sampler", "is_deterministic"]


def is_deterministic(site: Any) -> bool:
    """Whether a site is one of ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


class SetSites(Messenger):
    """Gives sites their values.

    Args:
        values: Values of latents and of plates' indices, by name.
        resample: Whether what is observed is sampled too.

    Raises:
        ValueError: A plate brings its own minibatch, another one in each run.
    """

    def __init__(self, values: Mapping[str, Tensor], resample: bool = False) -> None:
        super().__init__()
        self.values, self.resample = values, resample

    def _pyro_sample(self, msg: Any) -> None:
        value = self.values.get(msg["name"])
        if value is None:
            if self.resample and msg["is_observed"] and not _is_computed(msg):
                msg["is_observed"], msg["done"], msg["value"] = False, False, None
            return
        if site_is_subsample(msg):
            _check_minibatch(msg, value)
        elif value.numel() == msg["fn"].shape().numel():
            value = value.reshape(msg["fn"].shape())
        msg["value"], msg["done"] = value, True


def _is_computed(site: Any) -> bool:
    return is_deterministic(site) or site_is_factor(site)


def _check_minibatch(msg: Any, value: Tensor) -> None:
    own = msg["value"]
    if own is not None and not torch.equal(torch.as_tensor(own).to(value), value):
        raise ValueError(
            f"plate {msg['name']!r} is given other indices in each run (subsample=...), and all "
            "draws need one minibatch; use subsample_size=, or give it indices that stay"
        )


class RecordingELBO(TraceGap_ELBO):
    """Keeps the traces that it was computed from.

    Args:
        count: How many draws, at once where there are several; every one is checked afterwards.
    """

    _checks_at_once = False

    def __init__(self, count: int) -> None:
        super().__init__(count, vectorize_particles=count > 1)
        self.pair: Any = None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.pair = super()._get_trace(model, guide, args, kwargs)
        return self.pair

    def broadcast(self, program: Any) -> Any:
        """A program that runs at all draws at once."""
        return self._vectorized_num_particles(program)


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of the guide, and what the model makes of them: Pyro traces.

    Args:
        count: How many.
        terms: The record of their loss.
        sites: The model's trace that the loss saw: what each site is.
        model: The model's trace, the latents that it enumerates sampled.
        alone: The model's trace at the first draw only.
        predictive: The model's trace with its data drawn anew; ``None`` where that cannot be.
        prior: The model's trace with everything drawn anew; ``None`` where that cannot be.
        indices: The indices of each plate's data.
    """

    count: int
    terms: ELBOTerms
    sites: Any
    model: Any
    alone: Any
    predictive: Any
    prior: Any
    indices: Mapping[str, Tensor]

    @property
    def latents(self) -> list[str]:
        """Names of the model's latents, enumerated ones included."""
        return [n for n, site in sample_sites(self.sites).items() if not site["is_observed"]]

    @property
    def computed(self) -> list[str]:
        """Names of the latents that ``poutine.reparam`` computes from others."""
        sites = sample_sites(self.sites).items()
        return [n for n, site in sites if site["is_observed"] and _is_reparameterised(site)]

    @property
    def factors(self) -> list[str]:
        """Names of the model's factors."""
        return [n for n, site in sample_sites(self.sites).items() if site_is_factor(site)]

    @property
    def observed(self) -> list[str]:
        """Names of the sites with data."""
        others = {*self.latents, *self.computed, *self.factors}
        return [name for name in sample_sites(self.sites) if name not in others]

    @property
    def enumerated(self) -> list[str]:
        """Names of the latents that the model enumerates."""
        infer = {name: self.sites.nodes[name]["infer"] for name in self.latents}
        return [name for name in self.latents if "_enumerate_dim" in infer[name]]


def _is_reparameterised(site: Any) -> bool:
    """Whether an observed site holds a latent's prior, or only its value."""
    return "beta" in site or (site["mask"] is False and has_base(site["fn"], Delta))


class Sampler:
    """Draws of a model and a guide at one minibatch, which the first call draws.

    Args:
        model: The model.
        guide: The guide; what it would enumerate is sampled.
        args: What both take.
        kwargs: What both take.
        count: How many draws a call makes, at once.
    """

    def __init__(self, model: Any, guide: Any, args: Any, kwargs: Any, count: int) -> None:
        self.model, self.args, self.kwargs, self.count = model, args, kwargs, count
        self.guide = poutine.infer_config(guide, config_fn=_sampled)
        self.elbo = RecordingELBO(count)
        self.indices: dict[str, Tensor] = {}

    def draw(self) -> Draws:
        """New draws."""
        with SetSites(self.indices):
            terms = self.elbo.decompose(self.model, self.guide, *self.args, **self.kwargs)
        sites, guide = self.elbo.pair
        self.indices = plate_indices(guide, sites)
        self.indices.pop(PARTICLES, None)
        latents = {n: site for n, site in sample_sites(sites).items() if not site["is_observed"]}
        model = self._sampled_model(sites, latents)
        values = {name: model.nodes[name]["value"] for name in latents}
        everywhere = self.elbo.broadcast(self.model)
        predictive, prior = self._attempt(everywhere, values), self._attempt(everywhere, {})
        alone = self._alone(model, latents) if self.count > 1 else model
        return Draws(self.count, terms, sites, model, alone, predictive, prior, self.indices)

    def _sampled_model(self, sites: Any, latents: Mapping[str, Any]) -> Any:
        """The model's trace, the latents that it enumerates sampled given all others."""
        drawn = {n: s["value"] for n, s in latents.items() if "_enumerate_dim" not in s["infer"]}
        if len(drawn) == len(latents):
            return sites
        program = poutine.condition(self.elbo.broadcast(self.model), data=drawn)
        program = SetSites(self.indices)(program)
        first_dim = -1 - int(self.elbo.max_plate_nesting)
        return self._trace(infer_discrete(program, first_available_dim=first_dim))

    def _alone(self, model: Any, latents: Mapping[str, Any]) -> Any:
        """The model's trace at the first draw, the others not there."""
        first = {name: self._first(name, model.nodes[name], site) for name, site in latents.items()}
        return self._run(self.model, first)

    def _first(self, name: str, site: Any, recorded: Any) -> Tensor:
        frames = frames_of(recorded)
        return laid_out(name, site["value"], site["fn"].event_dim, frames, self.count).value[0]

    def _run(self, program: Any, values: Mapping[str, Tensor], resample: bool = False) -> Any:
        return self._trace(SetSites({**values, **self.indices}, resample)(program))

    def _trace(self, program: Any) -> Any:
        return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def _attempt(self, program: Any, values: Mapping[str, Tensor]) -> Any:
        try:
            return self._run(program, values, resample=True)
        except NotImplementedError:  # a distribution without samples, such as an improper prior
            return None


def _sampled(site: Any) -> Any:
    return {"enumerate": None}

"""Data that a model simulates, put in the place of those that it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor
from torch import Tensor

from ..elbo.sites import has_base
from ..elbo.traces import sample_sites
from ..errors import UnsupportedSiteError

__all__ = ["Arguments", "Simulation", "Values", "simulate"]

Values = Mapping[str, Tensor]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Simulation:
    """One data set, and the latents that it comes from: an exact sample of their posterior.

    Args:
        model: The model, which observes these data.
        args: Its arguments, and the guide's, at these data.
        kwargs: The others.
        data: The data, by observed site.
        latents: The latents, by site.
        unseen: The observed sites whose data no argument holds.
    """

    model: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    data: Values
    latents: Values
    unseen: tuple[str, ...]


@torch.no_grad()
def simulate(
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    arguments: Callable[[Values], Arguments] | None = None,
) -> Simulation:
    """Run a model forwards.

    Args:
        model: The model.
        args: What it takes.
        kwargs: What it takes.
        arguments: From the data, by observed site, to the arguments at them; by default an argument
            that equals an observed value is replaced by what was simulated for it.

    Raises:
        UnsupportedSiteError: The model has a factor, from which no data follow.
        ValueError: The simulated data have another density at the new arguments: the model uses its
            arguments for more than what it observes.
    """
    given = sample_sites(poutine.trace(model).get_trace(*args, **kwargs))
    observed = {name: site["value"] for name, site in given.items() if _is_data(site)}
    trace = poutine.trace(_Simulate()(model)).get_trace(*args, **kwargs)
    sites = sample_sites(trace)
    for name in filter(lambda name: site_is_factor(sites[name]), sites):
        raise UnsupportedSiteError(
            name,
            "it is a factor, and no data can be simulated from it",
            "write it as an observed site, or simulate without it",
        )
    data = {name: site["value"] for name, site in sites.items() if _is_data(site)}
    latents = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
    unseen: tuple[str, ...] = ()
    if arguments is None:
        (own_args, own_kwargs), found = _replaced(observed, data, args, kwargs)
        unseen = tuple(name for name in data if name not in found)
    else:
        own_args, own_kwargs = arguments(data)
    observing = _Observe(data)(model)
    _check(observing, own_args, own_kwargs, trace)
    return Simulation(observing, own_args, own_kwargs, data, latents, unseen)


def _replaced(
    observed: Values, data: Values, args: Any, kwargs: Any
) -> tuple[Arguments, list[str]]:
    """The arguments at the data, and the sites whose data they hold."""
    given = {**dict(enumerate(args)), **kwargs}
    sites = {key: _site_of(argument, observed, data) for key, argument in given.items()}
    found = [site for site in sites.values() if site is not None]
    for site in found:
        if found.count(site) > 1:
            raise ValueError(
                f"several arguments equal what site {site!r} observes, so that it cannot be said "
                "which of them holds its data; give placeholders that differ, or pass arguments=, "
                "from the data to the arguments"
            )
    new = {key: given[key] if site is None else data[site] for key, site in sites.items()}
    own = tuple(new[at] for at in range(len(args))), {name: new[name] for name in kwargs}
    return own, found


def _site_of(argument: Any, observed: Values, data: Values) -> str | None:
    """The site that observes an argument itself, or else one that equals it."""
    if not isinstance(argument, Tensor):
        return None
    names = [name for name in observed if name in data]
    same = [name for name in names if observed[name] is argument]
    equal = [name for name in names if torch.equal(argument, torch.as_tensor(observed[name]))]
    return next(iter(same or equal), None)


def _is_data(site: Any) -> bool:
    """Whether a site observes data, and not a value that a reparameterisation computes."""
    return site["is_observed"] and not has_base(site["fn"], Delta)


def _check(model: Any, args: Any, kwargs: Any, simulated: Any) -> None:
    replayed = poutine.trace(poutine.replay(model, trace=simulated)).get_trace(*args, **kwargs)
    sites = sample_sites(replayed)
    for name, site in sample_sites(simulated).items():
        before = site["fn"].log_prob(site["value"])
        after = sites[name]["fn"].log_prob(sites[name]["value"]) if name in sites else before + 1
        if before.shape != after.shape or not torch.allclose(before, after, rtol=1e-3):
            raise ValueError(
                f"site {name!r} has another density at the simulated data: the model uses its "
                "arguments for more than what it observes, so that what it simulates at them is "
                "no sample of it; take what is observed from the sites, or pass arguments="
            )


class _Simulate(Messenger):
    """Draws what is observed."""

    def _pyro_sample(self, msg: Any) -> None:
        determined = msg["infer"].get("_deterministic") or site_is_factor(msg)
        if msg["is_observed"] and not determined and not has_base(msg["fn"], Delta):
            msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


class _Observe(Messenger):
    """Observes other values."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]

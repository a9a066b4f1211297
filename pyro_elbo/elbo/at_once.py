"""Whether many samples at once have the densities that each has alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints

from ..errors import UnsupportedSiteError
from ..site_terms import PARTICLES
from .aside import aside
from .dependencies import Program
from .masks import lift_masks
from .sites import has_base
from .traces import Pair, sample_sites
from .tracing import trace_pair

__all__ = ["check_at_once", "moved"]

COMPARED = 2


def check_at_once(program: Program, pair: Pair | None, again: Callable[[], Pair]) -> None:
    """Check the first samples of a plate of particles against runs with each alone.

    ``w[0]``, ``z.sum()`` or a matrix product that counts dims from the left mix the samples up,
    often without an error. Where a guide draws them close together it hardly shows, so that samples
    that are farther apart are looked at as well. Of a program that has other numbers each time at
    the same values (a dropout) nothing can be said.

    Args:
        program: The program, without the plate.
        pair: Its traces in the plate; ``None`` where those have enumerated sites.
        again: Traces it in the plate again, what it may enumerate sampled.

    Raises:
        UnsupportedSiteError: A site's log-density of a sample is not the one that it has alone.
    """
    with aside(*program.everything):
        if pair is not None:
            _compare(program, pair)
        try:
            with _Apart():
                others = again()
        except (ArithmeticError, RuntimeError, ValueError):  # it cannot be run there
            return
        _compare(program, others)


def _compare(program: Program, pair: Pair) -> None:
    at_once = [_log_densities(trace) for trace in pair]
    for at in range(COMPARED):
        alone = [_log_densities(trace) for trace in _alone(program, pair, at)]
        for sites, others in zip(at_once, alone, strict=True):
            for name in sites.keys() & others.keys():
                if not _same(_of_particle(sites[name], at), others[name].value.sum()):
                    _refuse(name, program, pair, at, others[name])


def moved(msg: Any) -> Tensor | None:
    """A sample, moved by about 1, of a site that can have any real value; else ``None``."""
    fn = msg["fn"]
    if site_is_subsample(msg) or has_base(fn, (Delta, TransformedDistribution)):
        return None
    try:
        support = fn.support
    except NotImplementedError:
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is not constraints.real:
        return None
    value: Tensor = fn(*msg["args"], **msg["kwargs"])
    return value + torch.randn_like(value)


class _Density:
    """A log-density without scale and mask, and the dim that particles have in it."""

    def __init__(self, site: Any) -> None:
        self.value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        self.dim = next((f.dim for f in site["cond_indep_stack"] if f.name == PARTICLES), None)


def _log_densities(trace: Any) -> dict[str, _Density]:
    lift_masks(trace)
    return {name: _Density(site) for name, site in sample_sites(trace).items()}


def _of_particle(density: _Density, at: int) -> Tensor:
    """The sum of one particle's share; of everything, where the shape has no place for it."""
    value, dim = density.value, density.dim
    while dim is not None and value.dim() > -dim and value.shape[0] == 1:
        value = value[0]
    if dim is None or value.dim() != -dim:
        return value.sum()
    return value.select(dim, at if value.shape[dim] > 1 else 0).sum()


def _same(one: Tensor, other: Tensor) -> bool:
    tolerance = torch.finfo(one.dtype).eps ** 0.5 if one.is_floating_point() else 0.0
    return torch.allclose(one, other.to(one.dtype), tolerance, tolerance, equal_nan=True)


def _refuse(name: str, program: Program, pair: Pair, at: int, alone: _Density) -> None:
    again = [_log_densities(trace) for trace in _alone(program, pair, at)]
    if any(name in sites and _same(sites[name].value, alone.value) for sites in again):
        raise UnsupportedSiteError(
            name,
            "its log-density at many samples at once is not that of each sample alone: the program "
            "indexes, sums or multiplies dims that it counts from the left, where the samples are",
            "count dims from the right (z.sum(-1), w[..., 0]), or use vectorize_particles=False",
        )


def _alone(program: Program, pair: Pair, at: int) -> Pair:
    values = {
        name: _value(site, at) for trace in reversed(pair) for name, site in _drawn(trace).items()
    }
    given = _Given(values)
    return trace_pair(given(program.model), given(program.guide), program.args, program.kwargs)


def _drawn(trace: Any) -> dict[str, Any]:
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return {name: site for name, site in sites.items() if not site["is_observed"]}


def _value(site: Any, at: int) -> Any:
    value, fn = site["value"], site["fn"]
    dim = next((f.dim for f in site["cond_indep_stack"] if f.name == PARTICLES), None)
    if site_is_subsample(site) or dim is None or value.dim() < fn.event_dim - dim:
        return value
    dim -= fn.event_dim
    return value.select(dim, at if value.shape[dim] > 1 else 0)


class _Apart(Messenger):
    """Draws samples farther apart than their distributions do, where that is possible."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"]:
            return
        value = moved(msg)
        if value is not None:
            msg["value"], msg["done"] = value, True


class _Given(Messenger):
    """Gives sites their values.

    A Delta computes its own: alone it is the given one up to rounding, where its density is zero.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__()
        self._values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or has_base(msg["fn"], Delta):
            return
        if msg["name"] in self._values:
            msg["value"], msg["done"] = self._values[msg["name"]], True

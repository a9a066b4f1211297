"""What every part of a step asks of a trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

__all__ = [
    "Pair",
    "awaiting",
    "awaits_enumeration",
    "is_enumerating",
    "plate_indices",
    "sample_sites",
]

Pair = tuple[Any, Any]
_ASKS = {"enumerate", "_enumerate_dim", "_enum_total"}


def sample_sites(trace: Any) -> dict[str, Any]:
    """The sites that have a density, in order: no plate subsampling, no ``pyro.deterministic``."""
    return _sites_of(trace).drawn


def is_enumerating(pair: Pair) -> bool:
    """Whether a site of a trace pair was enumerated, in parallel or in sequence."""
    infers = (site["infer"] for trace in pair for site in _sites_of(trace).asking)
    return any("_enumerate_dim" in infer or "_enum_total" in infer for infer in infers)


def awaits_enumeration(pair: Pair) -> bool:
    """Whether a site of a trace pair is to be enumerated, and was not."""
    return any(_sites_of(trace).asking and any(awaiting(trace)) for trace in pair)


def awaiting(trace: Any) -> Iterator[str]:
    """The sites that are to be enumerated, and were not."""
    for site in _sites_of(trace).asking:
        infer = site["infer"]
        wanted = infer.get("enumerate") in ("parallel", "sequential") and not site["is_observed"]
        if wanted and "_enumerate_dim" not in infer and "_enum_total" not in infer:
            yield site["name"]


def plate_indices(*traces: Any) -> dict[str, Tensor]:
    """A copy of the indices of each plate's data, by plate name; the last trace has the say."""
    indices = {name: i for trace in traces for name, i in _sites_of(trace).indices.items()}
    return {name: torch.as_tensor(value).clone() for name, value in indices.items()}


class _Sites(NamedTuple):
    """What is sampled in a trace.

    Args:
        drawn: The sites that have a density, by name, in order.
        asking: Those of them that are, or are to be, enumerated.
        indices: The indices of each plate's data, by plate name.
    """

    drawn: dict[str, Any]
    asking: list[Any]
    indices: dict[str, Any]


def _sites_of(trace: Any) -> _Sites:
    """The sites of a trace that is complete, looked for once."""
    found: _Sites | None = vars(trace).get("_with_density")
    if found is None:
        found = trace._with_density = _Sites({}, [], {})
        for name, site in trace.nodes.items():
            if site["type"] == "sample":
                _put(site, name, found)
    return found


def _put(site: Any, name: str, found: _Sites) -> None:
    infer = site["infer"]
    if site_is_subsample(site):
        found.indices[name] = site["value"]
    elif not infer.get("_deterministic"):
        found.drawn[name] = site
        if not _ASKS.isdisjoint(infer):
            found.asking.append(site)

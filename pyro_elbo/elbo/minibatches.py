"""A common mistake: minibatches without their scale, beside a latent that all data share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from ..site_terms import PARTICLES
from ..weighting import Weights, unweighted
from .shards import seen_by_the_next
from .sites import has_base

__all__ = ["MinibatchWatch"]

Fingerprint = tuple[torch.Size, Tensor, Tensor]


class MinibatchWatch:
    """Compares the data of the first two training evaluations; what differs is a minibatch.

    Law:
        With minibatches of B of N data, each datum's terms are to count N / B times, or the KL of
        a latent outside the data's plate counts N / B times too often.
    """

    def __init__(self) -> None:
        self._first: dict[str, Fingerprint] | None = None
        self.done = False

    def see(self, model: Mapping[str, Any], weights: Weights) -> Iterator[tuple[str, str]]:
        """Look at one training evaluation.

        Args:
            model: The model's sites by name.
            weights: The weights; a latent that they name is taken care of.

        Yields:
            The latents whose KL counts once for each minibatch, each with the data's plate.
        """
        data = {name: site for name, site in model.items() if _is_unscaled_data(site)}
        now = {name: _fingerprint(site["value"]) for name, site in data.items()}
        if self._first is None:
            self._first = seen_by_the_next(now)
            return
        self.done = True
        changed = [name for name in now if _differs(now[name], self._first.get(name))]
        for latent, site in model.items():
            if "beta" not in site or weights.names(latent):
                continue
            for plates in (_plates(data[name]) for name in changed):
                if plates.isdisjoint(_plates(site)):
                    yield latent, min(plates)
                    break


def _is_unscaled_data(site: Any) -> bool:
    scale = unweighted(site)[0]
    plates = _plates(site)
    return (
        site["is_observed"]
        and "beta" not in site
        and not has_base(site["fn"], Delta)
        and bool(plates)
        and isinstance(site["value"], Tensor)
        and isinstance(scale, (int, float))
        and scale == 1
    )


def _plates(site: Any) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized} - {PARTICLES}


def _fingerprint(value: Tensor) -> Fingerprint:
    value = value.detach().cpu().double().nan_to_num()
    return value.shape, value.sum(), value.abs().sum()


def _differs(a: Fingerprint, b: Fingerprint | None) -> bool:
    """Whether two fingerprints belong to different data; another order of them is the same data."""
    if b is None:
        return False
    rounding = a[2] * torch.finfo(torch.double).eps * max(1, a[0].numel())
    return a[0] != b[0] or bool((a[1] - b[1]).abs() > rounding)

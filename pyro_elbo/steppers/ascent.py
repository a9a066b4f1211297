"""Whether each EM step raises the bound, as it should, told from noise."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.stats import t as student_t

__all__ = ["AscentWatch"]

FALSE_ALARM = 1e-9
UNKNOWN = math.nan


class AscentWatch:
    """Warns once where the objective fell over an EM step by more than its Monte Carlo error.

    The first evaluation of a step is compared with the last, and with the first of the next step
    where that has the very same arguments and weights. The error is 0 where nothing is sampled (an
    enumerated or ``Delta`` guide), else that of the particles; of one particle, and of a minibatch
    that is drawn anew, it is not known, and nothing is said.
    """

    def __init__(self) -> None:
        self._given: list[Any] = []
        self._previous: Any = None
        self._first: Any = None
        self._last: Any = None
        self._has_warned = False

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """A step begins."""
        given = [*args, *(part for item in sorted(kwargs.items()) for part in item)]
        self._previous = self._first if _same(given, self._given) else None
        self._given, self._first = given, None

    def see(self, loss: Any) -> None:
        """The loss was evaluated."""
        self._last = loss.terms if hasattr(loss, "decompose") else None
        if self._first is None:
            self._first = self._last

    def end(self) -> None:
        """A step ends."""
        for before, after in ((self._previous, self._first), (self._first, self._last)):
            if not self._has_warned and before is not None and _betas(before) == _betas(after):
                self._compare(before, after)

    def _compare(self, before: Any, after: Any) -> None:
        start, stop = float(before.objective), float(after.objective)
        error = math.hypot(_error(before), _error(after))
        if start - stop > error + _rounding(before.objective, after.objective):
            self._has_warned = True
            warnings.warn(
                f"an EM step lowered the objective from {start:.6g} to {stop:.6g} nats, by more "
                f"than its Monte Carlo error ({error:.2g}): an E-step or an M-step overshoots. "
                "Lower the learning rates, or let each step run to its optimum, "
                "e_steps=UntilConverged()",
                UserWarning,
                stacklevel=4,
            )


def _same(given: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(given) == len(others) and all(a is b for a, b in zip(given, others, strict=True))


def _betas(terms: Any) -> dict[str, Any]:
    return {name: site.beta for name, site in terms.sites.items()}


def _error(terms: Any) -> float:
    """What the objective may be off by: nan where that is not known."""
    latents = [site for site in terms.sites.values() if site.beta is not None]
    if any(map(_is_subsampled, terms.sites.values())):
        return UNKNOWN
    if all(site.gradient == "enumerated" or site.role == "map" for site in latents):
        return 0.0
    if terms.num_particles < 2:
        return UNKNOWN
    quantile = student_t.isf(FALSE_ALARM, terms.num_particles - 1)
    return float(quantile * terms.standard_error["objective"])


def _is_subsampled(site: Any) -> bool:
    frames = (frame for atom in site.atoms for frame in atom.frames.values())
    return any(frame.full_size not in (None, frame.size) for frame in frames)


def _rounding(*values: torch.Tensor) -> float:
    return max(float(value.abs()) * torch.finfo(value.dtype).eps ** 0.5 for value in values)

"""What is said and done about a term or a gradient that is nan or infinite."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import NonFiniteError, StopTraining
from ..terms import ELBOTerms

__all__ = [
    "NonFinitePolicy",
    "drop_gradients",
    "nonfinite_gradients",
    "nonfinite_terms",
    "sites_to_blame",
]

POLICIES = ("raise", "skip", "stop")
REMEDY = (
    "Parameters and optimiser are as they were. Look at the distribution's parameters and the data "
    "there (pyro.enable_validation() checks both; data under a mask must be finite too), bound "
    "scales away from 0, lower the learning rate, or clip gradients"
)


class NonFinitePolicy:
    """What a training evaluation does where its value or gradient is not finite.

    Args:
        name: ``"raise"``, ``"skip"`` (no gradients, one warning) or ``"stop"`` (training ends).

    Raises:
        ValueError: It is none of these.
    """

    def __init__(self, name: str) -> None:
        if name not in POLICIES:
            raise ValueError(f"on_nonfinite must be one of {POLICIES}, not {name!r}")
        self.name = name
        self.num_skipped = 0

    @property
    def is_shown(self) -> bool:
        """Whether the next one will be said: all but those skipped after the first."""
        return self.name != "skip" or not self.num_skipped

    def meet(self, what: str) -> None:
        """Do it.

        Raises:
            NonFiniteError: The policy is to raise.
            StopTraining: The policy is to stop.
        """
        error = NonFiniteError(f"{what}. {REMEDY}")
        if self.name == "raise":
            raise error
        if self.name == "stop":
            raise StopTraining(str(error)) from error
        self.num_skipped += 1
        if self.num_skipped == 1:
            warnings.warn(f"skipped: {error}", UserWarning, stacklevel=4)


def nonfinite_gradients(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """The parameters whose gradient is not finite, each with what it is."""
    grads = {name: _dense(p.grad) for name, p in parameters.items() if p.grad is not None}
    total = sum(float(grad.sum()) for grad in grads.values())
    if math.isfinite(total):
        return {}
    return {name: _kind(grad) for name, grad in grads.items() if not grad.isfinite().all()}


def drop_gradients(parameters: Iterable[Tensor]) -> None:
    """Leave no gradient: an optimiser moves a parameter of gradient 0 by its momentum."""
    for parameter in parameters:
        parameter.grad = None


def nonfinite_terms(terms: ELBOTerms) -> str:
    """Which term of which site is not finite, in words."""
    found = [
        f"the {part.replace('_', ' ')} of site {name!r} is {_kind(atom.value)} in "
        f"{int((~atom.value.isfinite()).sum())} of {atom.value.numel()} entries"
        for name, site in terms.sites.items()
        for part, atom in _first_bad(site.particles)
    ]
    return "; ".join(found) or "every term of every site is finite, their sum is not"


def sites_to_blame(totals: Mapping[str, Tensor], parameter: Tensor) -> list[str]:
    """The sites through whose terms a parameter's gradient is not finite."""
    blamed = []
    for name, total in totals.items():
        if total.requires_grad:
            (grad,) = torch.autograd.grad(total, parameter, retain_graph=True, allow_unused=True)
            if grad is not None and not _dense(grad).isfinite().all():
                blamed.append(name)
    return blamed


def _first_bad(particles: Iterable[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    bad = {
        part: atom
        for parts in particles
        for part, atoms in parts.items()
        for atom in atoms
        if not atom.value.isfinite().all()
    }
    return list(bad.items())[:1]


def _kind(values: Tensor) -> str:
    return "nan" if values.isnan().any() else "infinite"


def _dense(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad

"""What an estimator of the evidence returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Bound", "DatumEvidence", "EvidenceEstimate", "Minibatch"]

Bound = Literal["lower", "exact", "upper"]
UNRELIABLE = 0.7
MIN_SAMPLES = 25
MIN_ESS = 5


@dataclass(frozen=True, eq=False)
class DatumEvidence:
    r"""The evidence of each datum, :math:`\log p(x_n)`, in nats, without any scale.

    Args:
        plates: The names of the plates, in the order of the dims.
        value: Estimates, one dim for each plate.
        standard_error: Their Monte Carlo errors.
        ess: Effective sample sizes of their weights.
        khat: Pareto shapes of their weights' tails; nan where there is no tail to fit.
        indices: The data's indices in the one plate; ``None`` for several plates.
    """

    plates: tuple[str, ...]
    value: Tensor
    standard_error: Tensor
    ess: Tensor
    khat: Tensor
    indices: Tensor | None = None


@dataclass(frozen=True)
class Minibatch:
    """A simple random sample of the data, the rest of which cannot be reached.

    Args:
        plate: The plate of the data.
        dim: Its dim among those of what there is of each datum.
        size: How many data it has.
        full_size: How many there are.

    Raises:
        ValueError: It has no data, or more than there are.
    """

    plate: str
    dim: int
    size: int
    full_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.full_size:
            raise ValueError(
                f"a minibatch of plate {self.plate!r} must have from 1 to all {self.full_size} "
                f"data, not {self.size}"
            )

    def standard_error(self, value: Tensor, standard_error: Tensor) -> Tensor:
        """The error of a total that is scaled up to all data; nan for a minibatch of one datum.

        Args:
            value: What there is of each datum.
            standard_error: The Monte Carlo error of each, independent of one another.

        Raises:
            ValueError: These are not of as many data as the minibatch has.
        """
        if value.shape[self.dim] != self.size or standard_error.shape != value.shape:
            raise ValueError(
                f"a minibatch of {self.size} data of plate {self.plate!r} has as many values and "
                f"errors along dim {self.dim}; got shapes {tuple(value.shape)} and "
                f"{tuple(standard_error.shape)}"
            )
        scale = self.full_size / self.size
        noise = scale**2 * standard_error.square().sum()
        totals = value.movedim(self.dim, 0).flatten(1).sum(1) if value.dim() > 1 else value
        spread = totals.var() if self.size > 1 else totals.new_full((), torch.nan)
        unseen = 1.0 - self.size / self.full_size
        return (noise + self.full_size**2 * unseen * spread / self.size).sqrt()


@dataclass(frozen=True, eq=False)
class EvidenceEstimate:
    r"""An estimate of :math:`\log p(x)`, of the whole data set: 0-dim tensors in nats.

    Args:
        value: The estimate.
        standard_error: Its error: Monte Carlo, and that of a minibatch where the rest of the data
            cannot be reached.
        bound: ``"lower"``: its expectation is at most the truth; ``"exact"``; or ``"upper"``.
        num_samples: Samples of each latent that has its own weights.
        ess: Effective sample size of the weights, the smallest over data; ``num_samples`` where
            nothing is random.
        khat: Pareto shape of the weights' tail, the largest over data; nan where there is none.
        per_datum: The evidence of each datum; ``None`` where data are dependent.
        why_no_datum: Why ``per_datum`` is ``None``.
        why_infinite: Why the value is minus infinity, where it is (an ELBO can be).
        minibatch: The part of the data that it is scaled up from, where it cannot reach the others.

    Above 0.7 of :math:`\hat k` the weights have too heavy a tail: the value is still a bound in
    expectation, and likely far from the truth, and neither its error nor ``ess`` can be trusted.

    References:
        *Pareto Smoothed Importance Sampling* (Vehtari et al., 2024), arXiv 1507.02646.
    """

    value: Tensor
    standard_error: Tensor
    bound: Bound
    num_samples: int
    ess: Tensor
    khat: Tensor
    per_datum: DatumEvidence | None = None
    why_no_datum: str = ""
    why_infinite: str = ""
    minibatch: Minibatch | None = None

    @property
    def reliable(self) -> bool:
        r"""Whether no :math:`\hat k` is above 0.7, or, without one, the ESS is enough."""
        if self.khat.isnan() and self.bound != "exact":
            is_few = self.num_samples < MIN_SAMPLES
            return bool(self.ess >= (0.99 * self.num_samples if is_few else MIN_ESS))
        return not bool(self.khat > UNRELIABLE)

    def __str__(self) -> str:
        sign = {"lower": "≥", "exact": "=", "upper": "≤"}[self.bound]
        text = f"log p(x) {sign} {self.value:.4f} ± {self.standard_error:.4f} nats"
        if self.bound == "exact" and not self.standard_error:
            return f"log p(x) = {self.value:.4f} nats (exact)"
        text += f" ({self.num_samples} samples, ESS {self.ess:.1f}, k̂ {self.khat:.2f})"
        if self.reliable:
            return text
        return text + "\nk̂ > 0.7: a bound, but a loose one; its error cannot be trusted"

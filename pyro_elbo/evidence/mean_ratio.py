r"""The ELBO itself, datum by datum and without scales, beside which the evidence is put."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .importance import ImportanceWeighting
from .weights import LogWeights

__all__ = ["MeanLogRatio"]


@dataclass(frozen=True)
class MeanLogRatio(ImportanceWeighting):
    r"""The ELBO of a guide, :math:`E_q[\log p(x, z) - \log q(z)]`, as a bound of the evidence.

    It is the loosest that importance weighting knows, of the same data in the same factors: at
    weight 1, without scales, over all minibatches where they can be reached.

    Args:
        num_samples: Samples of each latent.
        plate: The plate whose data are independent; by default it is found.
        num_local_samples: Always 1.
        chunk_size: How many samples are evaluated at once.
        progress: Whether work of over a second shows a bar.

    Law:
        Its expectation is the ELBO, and at most that of :class:`ImportanceWeighting`.
    """

    num_local_samples: int = 1

    def _accumulator(self) -> LogWeights:
        return _LogRatios(self.num_samples)


class _LogRatios(LogWeights):
    """The mean of log weights in place of the log of their mean."""

    def __init__(self, num_samples: int) -> None:
        super().__init__(num_samples)
        self._chunks: list[Tensor] = []

    def add(self, log_weights: Tensor) -> None:
        """Take in a chunk, shape ``[samples, *batch]``."""
        log_weights = log_weights.double()
        mean = log_weights.mean(0)
        squares = (log_weights - mean).square().sum(0)
        self._chunks.append(torch.stack([torch.full_like(mean, len(log_weights)), mean, squares]))

    @property
    def log_mean(self) -> Tensor:
        """Mean log weight."""
        counts, means, _ = torch.stack(self._chunks, 1)
        return (counts * means).sum(0) / self.num_samples

    @property
    def standard_error(self) -> Tensor:
        """Its standard error."""
        counts, means, squares = torch.stack(self._chunks, 1)
        between = (counts * (means - self.log_mean).square()).sum(0)
        variance = (squares.sum(0) + between) / (self.num_samples - 1)
        return (variance / self.num_samples).sqrt()

    @property
    def ess(self) -> Tensor:
        """Every sample counts alike."""
        return torch.full_like(self.log_mean, self.num_samples)

    @property
    def khat(self) -> Tensor:
        """A mean of log weights has no tail to fear."""
        return torch.full_like(self.log_mean, math.nan)

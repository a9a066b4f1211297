r"""Importance weights as they come, chunk by chunk: their mean, its error, and their tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..interop import psis_khat

__all__ = ["LogWeights"]

NEVER = -math.inf


class LogWeights:
    r"""Log weights over samples, of which only sums and the largest are kept.

    Args:
        num_samples: How many samples will come.

    Law:
        The order and the sizes of the chunks change nothing beyond rounding.
    """

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self._seen = 0
        self._tail_size = min(num_samples, tail_length(num_samples) + 1)
        self._log_sum = self._log_squares = self._tail = torch.empty(0)

    def add(self, log_weights: Tensor) -> None:
        """Take in a chunk, shape ``[samples, *batch]``.

        Raises:
            ValueError: A weight is nan or infinite.
        """
        self._eps = torch.finfo(log_weights.dtype).eps
        log_weights = log_weights.detach().double()
        if log_weights.isnan().any() or (log_weights == math.inf).any():
            raise ValueError(
                "a weight p(x, z) / q(z) is infinite or nan, so it has no mean; check the "
                "log-densities of the guide and of the model at the guide's samples"
            )
        if not self._seen:
            empty = log_weights.new_full(log_weights.shape[1:], NEVER)
            self._log_sum, self._log_squares = empty, empty
            self._tail = log_weights[:0]
        self._seen += len(log_weights)
        self._log_sum = torch.logaddexp(self._log_sum, log_weights.logsumexp(0))
        self._log_squares = torch.logaddexp(self._log_squares, (2 * log_weights).logsumexp(0))
        kept = torch.cat([self._tail, log_weights])
        self._tail = kept.topk(min(len(kept), self._tail_size), dim=0).values

    @property
    def log_mean(self) -> Tensor:
        """Log of the mean weight, shape ``[*batch]``.

        Raises:
            ValueError: Every weight of an entry is 0.
        """
        if (self._log_sum == NEVER).any():
            raise ValueError(
                "every sample of the guide has weight 0: the model's density is 0 wherever the "
                "guide samples; check the supports of the guide and of the likelihood"
            )
        return self._log_sum - math.log(self._seen)

    @property
    def ess(self) -> Tensor:
        r"""Effective sample size, :math:`(\sum w)^2 / \sum w^2`."""
        return (2 * self._log_sum - self._log_squares).exp().clamp(1.0, self._seen)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of ``log_mean``, by the delta method."""
        relative_variance = (1.0 / self.ess - 1.0 / self._seen).clamp(min=0.0)
        return (relative_variance * (self._seen / max(1, self._seen - 1))).sqrt()

    @property
    def khat(self) -> Tensor:
        """Pareto shape of the tail, shape ``[*batch]``; nan where there is none to fit."""
        missing = self._tail.new_full((self._seen - len(self._tail), *self._tail.shape[1:]), NEVER)
        weights = torch.cat([self._tail, missing]).movedim(0, -1).cpu()
        return self._tail.new_tensor(psis_khat(weights.numpy(), eps=self._eps))


def tail_length(num_samples: int) -> int:
    """How many of the largest weights a Pareto distribution is fitted to."""
    return math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))

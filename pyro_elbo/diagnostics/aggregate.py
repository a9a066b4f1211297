r"""The guide's distributions over all data, and their mixture: the aggregate posterior.

.. math::
    q(z) = \frac1N \sum_n q(z \mid x_n)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import log
from typing import Any

import torch
from pyro.distributions import Independent, MultivariateNormal, Normal
from torch import Tensor
from tqdm import tqdm

__all__ = [
    "Draw",
    "PerDatum",
    "default_draws",
    "draw_mean",
    "exact_weights",
    "log_aggregate",
    "log_prob",
    "minibatch_weights",
    "progress_bar",
]

CHUNK = 2**20
DRAWS = 2_000


@dataclass(frozen=True, eq=False)
class PerDatum:
    """One distribution for each datum of a plate, in its smallest independent pieces.

    Args:
        fn: The distribution; its batch holds the plate and the pieces.
        dim: The plate's dim, counted from the right of the batch shape.
    """

    fn: Any
    dim: int

    @classmethod
    def of(cls, fn: Any, dim: int) -> PerDatum:
        """Take a site's distribution apart; nothing is copied, and nothing is validated."""
        pieces = _pieces(fn)
        dim -= fn.event_dim - pieces.event_dim
        pieces = copy.copy(pieces)
        pieces._validate_args = False
        return cls(pieces, dim)

    @property
    def size(self) -> int:
        """The number of data."""
        return int(self.fn.batch_shape[self.dim])

    @property
    def factorises(self) -> bool:
        """Whether every dim of the event is a piece of its own."""
        return not self.fn.event_shape

    def units(self, name: str) -> list[str]:
        """The names of the pieces, ``name[i, j]``."""
        shape = list(self.fn.batch_shape)
        del shape[self.dim]
        shape = [size for size in shape if size > 1]
        return [
            f"{name}[{', '.join(map(str, at))}]" if at else name
            for at in product(*(range(size) for size in shape))
        ]

    def sample(self) -> Tensor:
        """A draw for each datum, shape ``(data, *rest)``."""
        return self.rows(self.fn.sample())

    def rows(self, value: Tensor) -> Tensor:
        """A value of the site with the plate in front, shape ``(data, *rest)``."""
        return value.movedim(self.dim - self.fn.event_dim, 0)

    def log_prob(self, rows: Tensor) -> Tensor:
        """The log-density of each piece.

        Args:
            rows: Values for each datum, shape ``(draws, data, *rest)``.

        Returns:
            Shape ``(draws, data, pieces)``, in nats.
        """
        value = rows.movedim(1, self.dim - self.fn.event_dim)
        log_prob = self.fn.log_prob(value)
        return log_prob.movedim(self.dim, 1).reshape(len(rows), self.size, -1)


@dataclass(frozen=True, eq=False)
class Draw:
    """One draw of every latent for each datum.

    Args:
        values: One for each latent, shape ``(data, *rest)``.
        log_prob: Their log-densities given their datum, all pieces, shape ``(data, pieces)``.
    """

    values: Sequence[Tensor]
    log_prob: Tensor

    @classmethod
    def of(cls, guides: Sequence[PerDatum]) -> Draw:
        """Draw from the distributions of each latent."""
        values = [guide.sample() for guide in guides]
        return cls(values, log_prob(guides, [value.unsqueeze(0) for value in values])[0])


def log_prob(guides: Sequence[PerDatum], rows: Sequence[Tensor]) -> Tensor:
    """The log-densities of the pieces of all latents, side by side."""
    return torch.cat([guide.log_prob(row) for guide, row in zip(guides, rows, strict=True)], -1)


def log_aggregate(
    guides: Sequence[PerDatum],
    draw: Draw,
    batches: Tensor,
    log_weights: Tensor,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    r"""The log-density of a weighted mixture of the data's distributions at each datum's draw.

    .. math::
        \log \sum_{k < B} w_k\, q(z_a \mid x_{a - k}),

    where :math:`x_{a - k}` is the datum k places before :math:`x_a` in its batch, taken as a
    ring. In chunks: the memory does not grow with B.

    Args:
        guides: The distributions of each latent.
        draw: The draws.
        batches: Indices of the data in each batch, shape ``(batches, B)``.
        log_weights: Shape ``(B,)``; the first is that of the datum that made the draw.
        bar: The progress bar to move, by B in all.

    Returns:
        The log-densities of the joint, shape ``(data,)``, and of each piece alone, shape
        ``(data, pieces)``. Data in no batch have no meaning there.
    """
    size = guides[0].size
    steps = max(1, CHUNK // sum(value.numel() for value in draw.values))
    shifts = torch.arange(len(log_weights), device=batches.device)
    joint = alone = log_weights.new_tensor(-torch.inf)
    for chunk in shifts.split(steps):
        there, back = _rotated(batches, chunk, size), _rotated(batches, -chunk, size)
        part = log_prob(guides, [value[there] for value in draw.values])
        part = part.gather(1, back.unsqueeze(-1).expand_as(part))
        weight = log_weights[chunk].unsqueeze(-1)
        joint = torch.logaddexp(joint, (part.sum(-1) + weight).logsumexp(0))
        alone = torch.logaddexp(alone, (part + weight.unsqueeze(-1)).logsumexp(0))
        bar.update(len(chunk))
    return joint, alone


def progress_bar(total: int, progress: bool) -> Any:
    """A bar for work that takes more than a second, at a terminal."""
    return tqdm(total=total, disable=None if progress else True, delay=1, leave=False)


def exact_weights(like: Tensor) -> tuple[Tensor, Tensor]:
    """All data as one batch, and their weights; ``like`` has the shape ``(data, ...)``."""
    size = len(like)
    return torch.arange(size, device=like.device).unsqueeze(0), like.new_full((size,), -log(size))


def minibatch_weights(like: Tensor, estimator: str, batch_size: int) -> Tensor:
    """The log-weights of a ``"weighted"`` or a ``"stratified"`` minibatch; ``like`` as above."""
    size, others = len(like), batch_size - 1
    if estimator == "weighted":
        return like.new_full((batch_size,), -log(size * batch_size))
    weights = like.new_full((batch_size,), 1.0 / others)
    weights[0] = 1.0 / size
    weights[1] = (size - others) / (size * others)
    return weights.log()


def default_draws(size: int) -> int:
    """How many draws of each datum make 2,000 in all; at least 1."""
    return max(1, -(-DRAWS // size))


def draw_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of draws and its standard error.

    Args:
        values: Shape ``(draws, data)``, or minibatches for data. The data are all there are: with
            two draws of each or more, only the spread within a datum is error. With one, the
            spread over data is counted too, which is too much rather than too little.
    """
    draws, _ = values.shape
    if values.numel() == 1:
        return values.mean(), torch.full_like(values.mean(), torch.nan)
    spread = values.var(0).mean() if draws > 1 else values.var()
    return values.mean(), (spread / values.numel()).sqrt()


def _rotated(batches: Tensor, shifts: Tensor, size: int) -> Tensor:
    """For each shift, the datum that stands that many places further in each datum's batch."""
    places = torch.arange(batches.shape[1], device=batches.device)
    moved = torch.arange(size, device=batches.device).repeat(len(shifts), 1)
    further = (places + shifts.unsqueeze(-1)) % len(places)
    moved[:, batches] = batches[:, further].movedim(1, 0)
    return moved


def _pieces(fn: Any) -> Any:
    """A distribution without the outer ``.to_event()``; a diagonal normal as univariate ones."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if isinstance(fn, MultivariateNormal):
        scale = fn.scale_tril.diagonal(dim1=-2, dim2=-1)
        if torch.equal(scale.diag_embed(), fn.scale_tril):
            return Normal(fn.loc, scale)
    return fn

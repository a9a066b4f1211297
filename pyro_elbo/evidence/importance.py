r"""Importance weighting: :math:`\log p(x) = \log E_q[p(x, z) / q(z)]`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from .checks import check_count
from .estimate import EvidenceEstimate
from .modes import in_eval_mode
from .results import of_data, of_joint
from .weigher import Weigher
from .weights import LogWeights

__all__ = ["ImportanceWeighting"]

MAX_NUMBERS = 2**20


@dataclass(frozen=True)
class ImportanceWeighting:
    r"""A lower bound of the evidence from the guide's samples, for any Pyro program.

    .. math::
        \log p(x) \ge E\Big[\log \frac1S \sum_{s=1}^S \frac{p(x, z_s)}{q(z_s)}\Big],
        \quad z_s \sim q

    Where every latent is inside the data's plate each datum has weights of its own, and the bound
    is the sum over data, much tighter than one weight for all. Latents that all data share make it
    a nested estimate: for each of ``num_samples`` samples of them the data are weighted by
    ``num_local_samples`` samples of their own latents.

    The estimate is of the model as it stands: at :math:`\beta = 1` and without ``poutine.scale``.
    Masks hold. A subsampled plate is gone through whole, minibatch by minibatch, where the model
    takes its data by the plate's indices; where its arguments are one minibatch, that is scaled up,
    and the error says so. Sites that the guide enumerates are sampled; sites that the model
    enumerates are summed out. Modules run in eval mode. A program that gives other numbers at many
    samples at once than at each alone is evaluated sample by sample, with a warning; data in a
    plate that depend on one another's latents have one weight.

    Args:
        num_samples: Samples of each latent; with nested weights, of those that all data share.
        plate: The plate whose data are independent; by default it is found.
        num_local_samples: Samples of each datum's own latents for each sample of the shared ones.
        chunk_size: How many samples are evaluated at once; by default as many as keep the largest
            site under a million numbers.
        progress: Whether work of over a second shows a bar.

    Raises:
        ValueError: Fewer than two samples; a weight is nan or infinite, or all are 0; or an unknown
            plate.
        UnsupportedSiteError: The guide has no density over a latent, or data that are taken to be
            independent are not.

    Law:
        ``exp`` of the estimate is unbiased for :math:`p(x)`, so that the estimate itself is at most
        :math:`\log p(x)` in expectation. Where the guide is the posterior it is
        :math:`\log p(x)` with every sample.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import evidence
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def posterior(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5 ** 0.5))
        >>> x = torch.tensor([0.5, -1.0])
        >>> estimate = evidence.ImportanceWeighting(num_samples=10).estimate(model, posterior, x)
        >>> exact = dist.Normal(0., 2 ** 0.5).log_prob(x)
        >>> torch.allclose(estimate.per_datum.value.float(), exact)
        True

    References:
        *Importance Weighted Autoencoders* (Burda, Grosse & Salakhutdinov, 2015), arXiv 1509.00519.
    """

    num_samples: int = 1000
    plate: str | None = None
    num_local_samples: int = 100
    chunk_size: int | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples, 2)
        check_count("num_local_samples", self.num_local_samples, 1)
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size, 1)

    @torch.no_grad()
    def estimate(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> EvidenceEstimate:
        """Estimate the evidence of a program's data.

        Args:
            model: The model.
            guide: A guide with a density over each of its latents.
            *args: What both take.
            **kwargs: What both take.
        """
        with in_eval_mode(model, guide):
            return self.weigh(Weigher(model, guide, args, kwargs, self.plate))

    @torch.no_grad()
    def weigh(self, weigher: Weigher) -> EvidenceEstimate:
        """The estimate of a program that was looked at already."""
        is_joint = bool(weigher.layout.shared)
        estimate = self._joint(weigher) if is_joint else self._by_datum(weigher)
        return replace(estimate, why_infinite=_why_infinite(estimate, weigher))

    def _by_datum(self, weigher: Weigher) -> EvidenceEstimate:
        batches = weigher.batches()
        weights = [self._accumulator() for _ in batches]
        constant: Any = 0.0
        with self._bar(len(batches) * self.num_samples) as bar:
            for batch, batch_weights in zip(batches, weights, strict=True):
                for size in self._chunks(weigher.rows):
                    outside, inside = weigher.run(size, 1, batch)
                    batch_weights.add(batch.keep(inside[:, 0]))
                    constant = outside[0]
                    bar.update(size)
        return of_data(weigher.layout, batches, weights, constant)

    def _joint(self, weigher: Weigher) -> EvidenceEstimate:
        batches = weigher.batches()
        inner = self.num_local_samples if weigher.layout.local else 1
        weights = self._accumulator()
        with self._bar(len(batches) * self.num_samples) as bar:
            for size in self._chunks(weigher.rows * inner):
                shared: dict[str, Any] = {}
                total: Any = 0.0
                for at, batch in enumerate(batches):
                    batch = replace(batch, shared=shared)
                    outside, inside = weigher.run(size, inner, batch)
                    local = batch.keep(inside.logsumexp(1) - math.log(inner))
                    total = total + local.reshape(size, -1).sum(1)
                    total = total + outside if at == 0 else total
                    bar.update(size)
                weights.add(total)
        return of_joint(weigher.layout, weights)

    def _accumulator(self) -> LogWeights:
        return LogWeights(self.num_samples)

    def _chunks(self, rows: int) -> list[int]:
        size = self.chunk_size or max(1, MAX_NUMBERS // rows)
        full, rest = divmod(self.num_samples, size)
        return [size] * full + [rest] * bool(rest)

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, desc="evidence", delay=1.0, leave=False, disable=not self.progress)


def _why_infinite(estimate: EvidenceEstimate, weigher: Weigher) -> str:
    if estimate.value.isfinite():
        return ""
    return (
        f"samples of the guide have density 0 in the model, at the sites {list(weigher.zeros)}; "
        "give the guide the model's support"
    )

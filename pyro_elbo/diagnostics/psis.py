r"""Whether a guide's importance weights can be used: the Pareto shape of their tail."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..evidence import ImportanceWeighting
from ..evidence.checks import check_count
from ..evidence.layout import Layout
from ..evidence.modes import in_eval_mode
from ..evidence.results import of_data
from ..evidence.weigher import Batch, Weigher
from ..evidence.weights import LogWeights
from ..interop import why_no_khat
from ..interop.arrays import MIN_SAMPLES
from .tails import KhatReport, WeightTails

__all__ = ["khat"]


def khat(
    model: Any,
    guide: Any,
    *args: Any,
    num_samples: int = 1000,
    plate: str | None = None,
    chunk_size: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> KhatReport:
    r"""Whether a guide's importance weights can be used, for all data at once and datum by datum.

    .. math::
        w_s = \frac{p(x, z_s)}{q(z_s)} = \prod_n \frac{p(x_n, z_{ns})}{q(z_{ns})},
        \quad z_s \sim q, \qquad
        P(w > u + y \mid w > u) \approx (1 + \hat k\, y / \sigma)^{-1 / \hat k}

    Up to 0.5 of :math:`\hat k` the weights have a finite variance, up to 0.7 their mean, and with
    it the evidence and any expectation by reweighting, can still be used, given
    :math:`S \ge 10^{1 / (1 - \hat k)}` samples. The joint :math:`\hat k` rises with the number of
    data and says nothing of any; where every latent is inside the data's plate, each datum has one
    of its own, from the same samples. The standard error of one is about
    :math:`(1 + k) / \sqrt{M}`, of M weights in the tail, so that a few of many data are above by
    chance.

    The weights are those of :class:`~pyro_elbo.evidence.ImportanceWeighting`: of the model as it
    stands, at :math:`\beta = 1` and without ``poutine.scale``; masks hold, and a subsampled plate
    is gone through whole where the model takes its data by the plate's indices. The joint weights
    are of all latents: where data share some and have others, that class averages over the others.

    Args:
        model: The model.
        guide: A guide with a density over each of its latents.
        *args: What both take.
        num_samples: Samples of each latent, 25 at least.
        plate: The plate whose data are independent; by default it is found.
        chunk_size: How many samples are evaluated at once, as in ``ImportanceWeighting``.
        progress: Whether work of over a second shows a bar.
        **kwargs: What both take.

    Raises:
        ValueError: Too few samples for a tail; a weight is nan or infinite, or all of a datum are
            0; or an unknown plate.
        UnsupportedSiteError: The guide has no density over a latent, or data that are taken to be
            independent are not.

    Law:
        Each :math:`\hat k` is ArviZ' own, of the same weights. Where the guide is the posterior all
        weights are equal, and there is none.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics, plots
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def wide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.9))
        >>> report = diagnostics.khat(model, wide, torch.linspace(-3, 3, 200))
        >>> print(report.verdict)
        the weights of every datum can be used
        the joint k̂ is of the latents of all data at once: it rises with their number, and says
        nothing of any datum
        >>> bool(report.joint.khat > 0.7), report.per_datum.shares.good
        (True, 1.0)
        >>> ax = plots.khat_points(report.per_datum.khat)

    References:
        *Pareto Smoothed Importance Sampling* (Vehtari et al., 2024), arXiv 1507.02646.
        *Yes, but Did It Work?: Evaluating Variational Inference* (Yao, Vehtari, Simpson & Gelman,
        2018), arXiv 1802.02538.
    """
    check_count("num_samples", num_samples, MIN_SAMPLES)
    weighting = _Weighting(num_samples, plate, chunk_size=chunk_size, progress=progress)
    with in_eval_mode(model, guide):
        weigher = Weigher(model, guide, args, kwargs, plate)
        batches = weigher.batches()
        return _report(weigher.layout, batches, *weighting.both(weigher, batches))


@dataclass(frozen=True)
class _Weighting(ImportanceWeighting):
    """The weights of all latents at once, and of each datum, from the same samples."""

    @torch.no_grad()
    def both(self, weigher: Weigher, batches: Sequence[Batch]) -> tuple[_Weights, list[_Weights]]:
        joint, data = self._accumulator(), [self._accumulator() for _ in batches]
        with self._bar(len(batches) * self.num_samples) as bar:
            for size in self._chunks(weigher.rows):
                shared: dict[str, Any] = {}
                total: Any = 0.0
                for at, batch in enumerate(batches):
                    outside, inside = weigher.run(size, 1, replace(batch, shared=shared))
                    own = batch.keep(inside[:, 0])
                    data[at].add(own)
                    total = total + own.reshape(size, -1).sum(1) + (outside if at == 0 else 0.0)
                    bar.update(size)
                joint.add(total)
        return joint, data

    def _accumulator(self) -> _Weights:
        return _Weights(self.num_samples)


class _Weights(LogWeights):
    """Log weights that say why they have no tail."""

    def __init__(self, num_samples: int) -> None:
        super().__init__(num_samples)
        self._smallest = torch.tensor(math.inf)

    def add(self, log_weights: Tensor) -> None:
        super().add(log_weights)
        self._smallest = torch.minimum(self._smallest, log_weights.double().amin(0))

    @cached_property
    def khat(self) -> Tensor:
        return super().khat

    @property
    def reasons(self) -> list[str]:
        """Why there is none, for each entry without."""
        rest = self._smallest.expand(self._seen - len(self._tail), *self._smallest.shape)
        weights = torch.cat([self._tail, rest]).movedim(0, -1)[self.khat.isnan()]
        return [str(why) for why in why_no_khat(weights.cpu().numpy(), eps=self._eps)]


def _report(
    layout: Layout, batches: Sequence[Batch], joint: _Weights, data: Sequence[_Weights]
) -> KhatReport:
    count = joint.num_samples
    of_all = WeightTails(count, joint.khat, joint.ess, why=_why([joint]))
    part, why_no_datum = _part(layout, len(batches)), _why_no_datum(layout)
    if why_no_datum:
        return KhatReport(of_all, None, why_no_datum, part)
    own: Any = of_data(layout, batches, data, 0.0).per_datum
    per_datum = WeightTails(count, own.khat, own.ess, own.plates, own.indices, _why(data))
    return KhatReport(of_all, per_datum, "", part)


def _why(weights: Iterable[_Weights]) -> str:
    found = Counter(reason for part in weights for reason in part.reasons).most_common()
    if len(found) == 1:
        return found[0][0]
    return "; ".join(f"{count:,}: {reason}" for reason, count in found)


def _why_no_datum(layout: Layout) -> str:
    if not layout.shared:
        return "" if layout.plates else "no plate holds the data"
    shared = ", ".join(sorted(layout.shared))
    text = f"all data share {shared}, so that no datum has weights of its own"
    if not layout.local:
        return text
    local = ", ".join(sorted(layout.local))
    return (
        f"{text}; the joint k̂ rises with the number of data, and that of "
        f"evidence.ImportanceWeighting is of {shared} alone, averaged over {local}"
    )


def _part(layout: Layout, num_batches: int) -> str:
    if layout.subsampled is None or num_batches > 1:
        return ""
    frame = layout.frames[layout.subsampled]
    return f"the {frame.size:,} of {frame.full_size:,} in this minibatch of {layout.subsampled!r}"

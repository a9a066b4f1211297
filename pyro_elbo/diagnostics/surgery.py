"""What the KL to the prior is made of: information, dependence between units, and their misfit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..elbo.dependencies import Program
from ..tables import table
from .aggregate import (
    Draw,
    PerDatum,
    default_draws,
    draw_mean,
    exact_weights,
    log_aggregate,
    log_prob,
    minibatch_weights,
    progress_bar,
)
from .factorising import check_factorising
from .latents import runs

__all__ = ["ESTIMATORS", "SurgeryReport", "elbo_surgery"]

ESTIMATORS = ("exact", "weighted", "stratified")
_ROWS = {
    "mutual_information": "mutual information",
    "total_correlation": "total correlation",
    "dimensionwise_kl": "dimension-wise KL",
    "prior_kl": "KL to the prior",
}


@dataclass(frozen=True, eq=False)
class SurgeryReport:
    r"""The KL to the prior in three parts, 0-dim tensors in nats, averaged over data.

    Args:
        prior_kl: :math:`\frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \| p(z))`, of the same draws; it
            is the sum of the others.
        mutual_information: Between datum and latents; at most log ``num_data``.
        total_correlation: Of the units, under the aggregate posterior.
        dimensionwise_kl: The sum over units of the KL of the aggregate to the prior.
        standard_error: That of each, by name, over draws: the Monte Carlo error only, not the bias
            of a minibatch estimator.
        estimator: ``"exact"``, ``"weighted"`` or ``"stratified"``.
        batch_size: The minibatches' size; ``None`` for the exact aggregate.
        num_data: The number of data.
        num_samples: Draws of each datum.
        plate: The plate of the data.
        units: Names of the units.
    """

    prior_kl: Tensor
    mutual_information: Tensor
    total_correlation: Tensor
    dimensionwise_kl: Tensor
    standard_error: Mapping[str, Tensor]
    estimator: str
    batch_size: int | None
    num_data: int
    num_samples: int
    plate: str
    units: tuple[str, ...]

    def __str__(self) -> str:
        rows = [["nats a datum", "value", "std. error"]]
        rows += [
            [label, f"{float(getattr(self, name)):.4f}", f"{float(self.standard_error[name]):.4f}"]
            for name, label in _ROWS.items()
        ]
        over = f"{self.num_data:,} data in plate {self.plate!r}, {len(self.units)} units"
        how = "against the exact aggregate posterior"
        if self.batch_size is not None:
            how = (
                f"{self.estimator} in minibatches of {self.batch_size:,}: biased, see elbo_surgery"
            )
        return f"{table(rows, text=())}\n\n{over}; {how}; I(x; z) <= {log(self.num_data):.3f}"


@torch.no_grad()
def elbo_surgery(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    estimator: str = "exact",
    batch_size: int | None = None,
    num_samples: int | None = None,
    plate: str | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> SurgeryReport:
    r"""The KL to the prior as mutual information, total correlation and dimension-wise KL.

    .. math::
        \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \| p(z))
          = \underbrace{\mathrm{KL}(q(z, n) \| q(z)\, q(n))}_{\text{mutual information}}
          + \underbrace{\mathrm{KL}(q(z) \| \textstyle\prod_u q(z_u))}_{\text{total correlation}}
          + \underbrace{\textstyle\sum_u \mathrm{KL}(q(z_u) \| p(z_u))}_{\text{dimension-wise KL}},
        \quad q(z) = \frac1N \sum_n q(z \mid x_n)

    The draws of z are Monte Carlo; the density of the aggregate at them is a sum over all data, or
    what a minibatch of B data makes of it:

    ================  ==========================================================================
    ``"exact"``       all N data, weight 1/N; N² densities for each draw of all data, in chunks
    ``"weighted"``    the minibatch, weight 1/(NB): the weights add up to 1/N, so each of the D + 1
                      log-densities is too small by up to log N: I by about + log N, the total
                      correlation by + (D - 1) log N, the dimension-wise KL by - D log N
    ``"stratified"``  the own datum 1/N, one other (N - M)/(NM), the rest 1/M, with M = B - 1: the
                      densities are unbiased, so their logarithms are too small (Jensen): I is too
                      large, and the others too small, where few of the B data matter to a draw
    ================  ==========================================================================

    Measured in nats on 10,000 Gaussians with D = 6 (standard errors below 0.02):

    =======================  ==================  =================  =================
    estimator                mutual information  total correlation  dimension-wise KL
    =======================  ==================  =================  =================
    exact                    4.68                1.24               0.23
    weighted, B = 100        12.97               48.09              -54.91
    weighted, B = 1,000      13.69               47.47              -55.01
    stratified, B = 100      5.44                0.59               0.11
    stratified, B = 1,000    4.83                1.10               0.23
    =======================  ==================  =================  =================

    Public implementations of the stratified weights fill a column in place of the diagonal, which
    gives 3.78, 2.00 and 0.35 at B = 100.

    All three give the same KL to the prior, so that it adds up proves nothing. The guide's
    distributions come from one run of guide and model, without scales and KL weights.

    Args:
        model: The model.
        guide: The guide.
        *args: Their arguments.
        estimator: One of the three.
        batch_size: B, from 2 to N; for the minibatch estimators only. Data that fill no minibatch
            are left out of that draw.
        num_samples: Draws of each datum; by default as many as make 2,000 in all.
        plate: Name of the plate of the data; by default the one that latents and data share.
        progress: Whether long work shows a bar.
        **kwargs: Their keyword arguments.

    Raises:
        ValueError: The plate is not known; or an argument makes no sense.
        UnsupportedSiteError: A latent whose guide or prior does not factorise over dims, has no
            distribution for each datum, or depends on other latents; a prior that differs between
            data; or a plate that is subsampled, whose aggregate would be another.

    Law:
        ``prior_kl == mutual_information + total_correlation + dimensionwise_kl`` to rounding;
        ``mutual_information <= log(num_data)`` in mean.

    Example:
        >>> from pyro_elbo import reference
        >>> problem = reference.LinearVAE(num_data=50)
        >>> report = elbo_surgery(problem.model, problem.guide, problem.data)
        >>> parts = report.mutual_information + report.total_correlation + report.dimensionwise_kl
        >>> torch.isclose(parts, report.prior_kl)
        tensor(True)
        >>> kl = problem.exact_terms().kl / 50
        >>> bool((report.prior_kl - kl).abs() < 5 * report.standard_error["prior_kl"])
        True

    References:
        *ELBO surgery: yet another way to carve up the variational evidence lower bound* (Hoffman &
        Johnson, 2016).
        *Isolating Sources of Disentanglement in Variational Autoencoders* (Chen et al., 2018),
        arXiv 1802.04942.
    """
    _check(estimator, batch_size, num_samples)
    run = runs(Program(model, guide, args, kwargs), 1)[0]
    latents = run.find(plate, None)
    priors = [check_factorising(run, latent) for latent in latents]
    guides = [latent.guide for latent in latents]
    size = guides[0].size
    if batch_size is not None and batch_size > size:
        raise ValueError(f"batch_size is {batch_size}, and there are only {size} data")
    count = num_samples or default_draws(size)
    with progress_bar(count * (batch_size or size), progress) as bar:
        parts = [_decompose(guides, priors, estimator, batch_size, bar) for _ in range(count)]
    means = {name: draw_mean(torch.stack([part[name] for part in parts])) for name in _ROWS}
    return SurgeryReport(
        **{name: mean for name, (mean, _) in means.items()},
        standard_error={name: error for name, (_, error) in means.items()},
        estimator=estimator,
        batch_size=batch_size,
        num_data=size,
        num_samples=count,
        plate=latents[0].plate,
        units=tuple(
            name
            for latent, side in zip(latents, guides, strict=True)
            for name in side.units(latent.name)
        ),
    )


def _check(estimator: str, batch_size: Any, num_samples: Any) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {ESTIMATORS}, not {estimator!r}")
    if (batch_size is None) != (estimator == "exact"):
        raise ValueError(
            f"batch_size is {batch_size} with estimator={estimator!r}: the exact aggregate has no "
            "minibatches, and the others need their size"
        )
    for name, value, least in (("batch_size", batch_size, 2), ("num_samples", num_samples, 1)):
        if value is not None and (not isinstance(value, Integral) or value < least):
            raise ValueError(f"{name} must be an integer >= {least}, not {value!r}")


def _decompose(
    guides: Sequence[PerDatum],
    priors: Sequence[PerDatum],
    estimator: str,
    batch_size: int | None,
    bar: Any,
) -> dict[str, Tensor]:
    """The terms at one draw of each datum, or their means over each minibatch."""
    draw = Draw.of(guides)
    batches, log_weights = exact_weights(draw.log_prob)
    if batch_size is not None:
        batches = _shuffled(batches.flatten(), batch_size)
        log_weights = minibatch_weights(draw.log_prob, estimator, batch_size)
    joint, alone = log_aggregate(guides, draw, batches, log_weights, bar)
    given, apart = draw.log_prob.sum(-1), alone.sum(-1)
    prior = log_prob(priors, [value.unsqueeze(0) for value in draw.values])[0].sum(-1)
    terms = {
        "mutual_information": given - joint,
        "total_correlation": joint - apart,
        "dimensionwise_kl": apart - prior,
        "prior_kl": given - prior,
    }
    if batch_size is None:
        return terms
    return {name: values[batches].mean(1) for name, values in terms.items()}


def _shuffled(indices: Tensor, batch_size: int) -> Tensor:
    """Minibatches without replacement; what fills none is left out."""
    order = indices[torch.randperm(len(indices), device=indices.device)]
    return order[: len(order) // batch_size * batch_size].reshape(-1, batch_size)

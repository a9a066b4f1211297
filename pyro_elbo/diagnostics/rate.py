r"""Rate against distortion: what a model makes of each price of a nat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..elbo import TraceKL_ELBO
from ..evidence.checks import check_count
from ..evidence.modes import in_eval_mode
from ..tables import table
from ..terms import ELBOTerms
from .collapse import posterior_collapse

__all__ = ["RateDistortion", "rate_distortion"]

Fitted = tuple[Any, Any, Sequence[Any]]


@dataclass(frozen=True, eq=False)
class RateDistortion:
    r"""One point for each weight, in the order in which they were trained; in nats.

    Args:
        betas: The weights, shape ``[points]``.
        rate: The KL to the prior, :math:`R`, shape ``[points]``.
        rate_error: Its standard error.
        distortion: Minus the expected log-likelihood, :math:`D`, shape ``[points]``.
        distortion_error: Its standard error.
        active_units: Units that carry information about the data; -1 where that cannot be said.
    """

    betas: Tensor
    rate: Tensor
    rate_error: Tensor
    distortion: Tensor
    distortion_error: Tensor
    active_units: Tensor

    @property
    def elbo(self) -> Tensor:
        """Minus rate minus distortion."""
        return -self.rate - self.distortion

    def __str__(self) -> str:
        rows = [["beta", "rate", "± ", "distortion", "±", "ELBO", "active"]]
        columns = (self.rate, self.rate_error, self.distortion, self.distortion_error, self.elbo)
        for at, beta in enumerate(self.betas.tolist()):
            numbers = [f"{float(column[at]):.3f}" for column in columns]
            active = int(self.active_units[at])
            rows.append([f"{beta:g}", *numbers, "?" if active < 0 else str(active)])
        return table(rows, text=())


def rate_distortion(
    fit: Callable[[TraceKL_ELBO], Fitted],
    betas: Sequence[float],
    *,
    num_particles: int = 100,
    progress: bool = True,
) -> RateDistortion:
    r"""Train at each weight, from where the last one ended, and measure both sides of the bound.

    .. math::
        \min_q\; D + \beta R, \qquad R = \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \quad
        D = -E_q[\log p(x \mid z)], \quad \mathrm{ELBO} = -(D + R)

    Args:
        fit: Trains with the loss that it is given, and returns model, guide and the arguments to be
            measured at. What it trains should go on from where it is: that is the warm start.
        betas: The weights, in the order of training; the usual one is upwards, since a unit
            that has collapsed seldom comes back.
        num_particles: Samples for rate and distortion.
        progress: Whether long work shows a bar.

    Returns:
        Of the data that ``fit`` returns, summed over them, with plate scales.

    Raises:
        ValueError: There is no weight, or one is negative or not finite.

    Law:
        At the optimum the distortion rises with the weight and the rate falls, and
        :math:`dD / dR = -\beta`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> x = torch.tensor(2.0)
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def fit(elbo):
        ...     precision = 1 + 1 / elbo.beta  # here the optimum is known
        ...     best = dist.Normal(x / elbo.beta / precision, precision ** -0.5)
        ...     return model, lambda x: pyro.sample("z", best), (x,)
        >>> curve = diagnostics.rate_distortion(fit, [0.5, 1.0, 4.0])
        >>> curve.rate
        tensor([1.1049, 0.5966, 0.0916])

    References:
        *Fixing a Broken ELBO* (Alemi et al., 2018), arXiv 1711.00464.
    """
    check_count("num_particles", num_particles, 2)
    betas = [float(beta) for beta in betas]
    if not betas:
        raise ValueError("betas is empty; name the weights to train at")
    losses = [TraceKL_ELBO(beta=beta) for beta in betas]
    bar = tqdm(losses, desc="rate and distortion", delay=1.0, leave=False, disable=not progress)
    points = [_point(*fit(elbo), num_particles) for elbo in bar]
    rate, distortion, rate_error, distortion_error, active = map(
        torch.stack, zip(*points, strict=True)
    )
    weights = torch.tensor(betas)
    return RateDistortion(weights, rate, rate_error, distortion, distortion_error, active)


def _point(model: Any, guide: Any, args: Sequence[Any], num_particles: int) -> tuple[Tensor, ...]:
    elbo = TraceKL_ELBO(num_particles=num_particles, vectorize_particles=True)
    with in_eval_mode(model, guide):
        terms: ELBOTerms = elbo.decompose(model, guide, *args)
        active = torch.tensor(_active_units(model, guide, args))
    error = terms.standard_error
    return terms.kl, -terms.reconstruction, error["kl"], error["reconstruction"], active


def _active_units(model: Any, guide: Any, args: Sequence[Any]) -> int:
    try:
        report = posterior_collapse(model, guide, *args, progress=False)
    except (ValueError, NotImplementedError):
        return -1
    return int(report.active.sum())

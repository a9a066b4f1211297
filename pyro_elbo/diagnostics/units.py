"""The units of a latent: the smallest pieces over which guide and prior are both independent."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Categorical

from ..errors import UnsupportedSiteError
from .aggregate import PerDatum
from .latents import Latent

__all__ = ["activity", "unit_distribution", "unit_kl", "unit_means"]


def unit_distribution(latent: Latent) -> PerDatum:
    """The guide's distribution with one piece for each unit."""
    if latent.splits:
        return latent.guide
    return PerDatum(latent.site.guide_sites[latent.name]["fn"], latent.dim)


def unit_kl(latent: Latent) -> Tensor:
    """The KL of each unit in nats, averaged over data, shape ``(units,)``."""
    if "kl_per_dimension" in latent.terms.particles[0]:
        return _over_data(latent, latent.terms.kl_per_dimension)
    if latent.prior is None or not latent.splits or not latent.density["fn"].event_dim:
        return _over_data(latent, latent.terms.kl)
    rows = latent.guide.rows(latent.density["value"]).unsqueeze(0)
    return (latent.guide.log_prob(rows) - latent.prior.log_prob(rows))[0].mean(0)


def unit_means(latent: Latent) -> Tensor:
    """The guide's mean of each component of each unit, shape ``(data, units, components)``.

    Raises:
        UnsupportedSiteError: It is not finite.
    """
    units = unit_distribution(latent)
    of = latent.guide if latent.is_direct else units
    mean = _mean(of.fn, latent.site.guide_sites[latent.name]["value"])
    if not mean.isfinite().all():
        raise UnsupportedSiteError(
            latent.name,
            f"{type(of.fn).__name__} has no finite mean, whose variance could tell if it is active",
            "give the guide a distribution with a mean there, such as Normal or LogNormal",
        )
    mean = mean.movedim(len(of.fn.batch_shape) + of.dim, 0)
    return mean.reshape(units.size, len(units.units(latent.name)), -1)


def activity(means: Tensor) -> tuple[Tensor, Tensor]:
    r"""The variance of the mean over data, without the noise of samples, and its standard error.

    .. math::
        \frac{1}{S (S - 1)} \sum_{s \ne t} \mathrm{Cov}_n(m_{ns}, m_{nt})
            = \frac{S\, \mathrm{Var}_n(\bar m_n) - \frac1S \sum_s \mathrm{Var}_n(m_{ns})}{S - 1}

    Args:
        means: Independent estimates, shape ``(samples, data, units, components)``.

    Returns:
        Both of shape ``(units,)``, of each unit's component of largest variance; the error is the
        jackknife's over samples.
    """
    samples = len(means)
    variance, total = means.var(1), means.sum(0)
    without = ((total - means) / (samples - 1)).var(1)
    of_others = (variance.sum(0) - variance) / (samples - 1)
    left = ((samples - 1) * without - of_others) / (samples - 2)
    value = (samples * (total / samples).var(0) - variance.mean(0)) / (samples - 1)
    error = ((samples - 1) * left.var(0, correction=0)).sqrt()
    value, largest = value.max(-1)
    return value, error.gather(-1, largest.unsqueeze(-1)).squeeze(-1)


def _over_data(latent: Latent, value: Tensor) -> Tensor:
    """The mean over data of what is shaped by the latent's plates, and maybe its event."""
    return value.mean(latent.terms.plates.index(latent.plate)).reshape(-1)


def _mean(fn: Any, value: Tensor) -> Tensor:
    """The mean of a distribution; where it has none in closed form, its sample."""
    if isinstance(fn, Categorical):
        return fn.probs
    try:
        return fn.mean
    except NotImplementedError:
        return value

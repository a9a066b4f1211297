"""Which latent units carry information about the data, and which have collapsed to the prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..elbo.dependencies import Program
from ..tables import table
from .aggregate import (
    Draw,
    default_draws,
    draw_mean,
    exact_weights,
    log_aggregate,
    progress_bar,
)
from .latents import Latent, Run, runs
from .units import activity, unit_distribution, unit_kl, unit_means

__all__ = ["CollapseReport", "posterior_collapse"]

ACTIVE_VARIANCE = 0.01
NEAR = 2.0


@dataclass(frozen=True, eq=False)
class CollapseReport:
    """What each latent unit tells about the data; ``print`` shows a table and the verdict.

    A unit is the smallest piece over which guide and prior are independent: a dim of an
    ``.to_event()``, an entry of a plate inside the data's, or a whole joint distribution.

    Args:
        plate: The plate of the data.
        units: Names of the units, such as ``"z[0]"``.
        num_data: The number of data in the plate, or in the minibatch that was drawn.
        full_size: The plate's full size; where it is larger, everything is of one minibatch.
        num_samples: Samples of the guide.
        kl: KL of each unit in nats, averaged over data, shape ``(units,)``.
        kl_standard_error: Its Monte Carlo error; 0 up to rounding where the KL is closed.
        activity: Variance over data of the unit's posterior mean, in units of z squared.
        activity_standard_error: Its Monte Carlo error.
        threshold: A unit is active where its activity exceeds this.
        mutual_information: Between datum and latents, in nats, at most log ``num_data``; nan where
            it is not known.
        mutual_information_standard_error: Its Monte Carlo error.
        no_mutual_information: Why it is nan; else ``None``.
    """

    plate: str
    units: tuple[str, ...]
    num_data: int
    full_size: int
    num_samples: int
    kl: Tensor
    kl_standard_error: Tensor
    activity: Tensor
    activity_standard_error: Tensor
    threshold: float
    mutual_information: Tensor
    mutual_information_standard_error: Tensor
    no_mutual_information: str | None

    @property
    def active(self) -> Tensor:
        """Whether each unit is active, shape ``(units,)``."""
        return self.activity > self.threshold

    @property
    def dead_share(self) -> float:
        """The share of units that are not active."""
        return 1.0 - float(self.active.double().mean())

    @property
    def verdict(self) -> str:
        """Which units are dead, which are within two standard errors of that, and what to do."""
        return " ".join([*self._dead_units(), *self._unsure_units()])

    def __str__(self) -> str:
        rows = [["unit", "KL", "std. error", "activity", "std. error", "active"]]
        values = (self.kl, self.kl_standard_error, self.activity, self.activity_standard_error)
        rows += [
            [name, *(f"{float(value[i]):.4f}" for value in values), "yes" if alive else "dead"]
            for i, (name, alive) in enumerate(zip(self.units, self.active.tolist(), strict=True))
        ]
        return "\n".join([table(rows, text=("unit",)), "", *self._totals(), self.verdict])

    def _totals(self) -> list[str]:
        data = f"{self.num_data:,} data in plate {self.plate!r}"
        if self.full_size != self.num_data:
            data = f"a minibatch of {data} (of {self.full_size:,})"
        information = f"unknown: {self.no_mutual_information}"
        if self.no_mutual_information is None:
            error = f"{float(self.mutual_information_standard_error):.3f}"
            limit = f"at most log {self.num_data} = {math.log(self.num_data):.3f}"
            information = f"{float(self.mutual_information):.3f} ± {error} nats ({limit})"
        return [
            f"KL: {float(self.kl.sum()):.3f} nats a datum, over {data}",
            f"I(x; z): {information}",
        ]

    def _dead_units(self) -> list[str]:
        dead, kl = self._names(~self.active), float(self.kl[~self.active].sum())
        if not dead:
            return ["No unit is dead."]
        if len(dead) == len(self.units):
            return [
                f"All {len(dead)} units are dead: the posterior has collapsed, and z says nothing "
                f"about x, for {kl:.3f} nats a datum. Warm the KL up (beta=schedules.Linear(0.0, "
                "1.0, num_steps=...) or Cyclical), start from less observation noise or a weaker "
                "decoder; where the ELBO is still no better, the data have no more to say than "
                "the noise."
            ]
        return [
            f"{len(dead)} of {len(self.units)} units are dead: {', '.join(dead)}. They say next to "
            f"nothing about x, for {kl:.3f} nats a datum. Where the others suffice they can be "
            "left out; if more should be used, warm the KL up (beta=schedules.Linear(0.0, 1.0, "
            "num_steps=...)) or lower the observation noise."
        ]

    def _unsure_units(self) -> list[str]:
        near = (self.activity - self.threshold).abs() < NEAR * self.activity_standard_error
        names = self._names(near)
        if not names:
            return []
        return [f"Too close to the threshold to tell: {', '.join(names)}; raise num_samples."]

    def _names(self, chosen: Tensor) -> list[str]:
        return [
            name for name, is_chosen in zip(self.units, chosen.tolist(), strict=True) if is_chosen
        ]


@torch.no_grad()
def posterior_collapse(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 10,
    plate: str | None = None,
    site: str | None = None,
    threshold: float = ACTIVE_VARIANCE,
    progress: bool = True,
    **kwargs: Any,
) -> CollapseReport:
    r"""Which latent units of each datum are used, and which are dead.

    .. math::
        \mathrm{KL}_u = \frac1N \sum_n \mathrm{KL}(q(z_u \mid x_n) \,\|\, p(z_u)), \quad
        A_u = \mathrm{Var}_n\!\left(E_q[z_u \mid x_n]\right), \quad
        I(x; z) = \frac1N \sum_n E_{q(z \mid x_n)}\!\left[
            \log \frac{q(z \mid x_n)}{\frac1N \sum_m q(z \mid x_m)}\right]

    The KL is that of :class:`~pyro_elbo.TraceKL_ELBO`: closed where it exists and is right, sampled
    otherwise. The posterior mean is the distribution's own where it has one; a ``Categorical``
    counts by its probabilities, and of several components the largest variance counts. What a
    sample or another latent adds to the variance of the means is noise, and is taken off: the
    variance over data is replaced by the covariance over data of two samples, averaged over all
    pairs of samples. The mutual information is against the aggregate of all data in the plate, its
    cost grows with their square. It needs that the guide's distributions depend on nothing but the
    data; scales (of plates, of the user, a KL weight) are left out of everything.

    With a subsampled plate the result is of one minibatch (``full_size > num_data``), and the
    mutual information is nan: against the aggregate of a minibatch it would be too small.
    Modules are run as they are: call ``.eval()`` first where they have dropout or batch norm.

    Args:
        model: The model.
        guide: The guide.
        *args: Their arguments.
        num_samples: Runs of both, at least 3.
        plate: Name of the plate of the data; by default the one that latents and data share.
        site: A latent; by default all that are inside the plate.
        threshold: The activity above which a unit is active.
        progress: Whether long work shows a bar.
        **kwargs: Their keyword arguments.

    Raises:
        ValueError: The plate is not known, or it or the site do not exist; it has one datum only;
            or ``num_samples`` or ``threshold`` make no sense.
        UnsupportedSiteError: A latent has no distribution for each datum (a joint AutoGuide, a
            point mass, a mask), or no finite mean.

    Law:
        At the maximum of the likelihood of a linear VAE the active units are as many as the data's
        covariance has eigenvalues above the noise variance.

    Example:
        >>> import pyro
        >>> from pyro_elbo import reference
        >>> problem = reference.LinearVAE()
        >>> problem.fit_maximum_likelihood(noise=1.4)
        >>> problem.set_guide_to_posterior()
        >>> report = posterior_collapse(problem.model, problem.guide, problem.data)
        >>> report.units, report.active, report.dead_share
        (('z[0]', 'z[1]'), tensor([ True, False]), 0.5)
        >>> report.verdict.split(".")[0]
        '1 of 2 units are dead: z[1]'

    References:
        *Importance Weighted Autoencoders* (Burda, Grosse & Salakhutdinov, 2015), arXiv 1509.00519.
        *ELBO surgery: yet another way to carve up the variational evidence lower bound* (Hoffman &
        Johnson, 2016).
        *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse* (Lucas et al., 2019),
        arXiv 1911.02469.
    """
    _check(num_samples, threshold)
    seen = runs(Program(model, guide, args, kwargs), num_samples)
    latents = [run.find(plate, site) for run in seen]
    first = latents[0]
    frame = first[0].terms.frame(first[0].plate)
    if frame.size < 2:
        raise ValueError(f"plate {frame.name!r} has one datum, so nothing varies over data")
    kl = torch.stack([torch.cat([unit_kl(latent) for latent in each]) for each in latents])
    means = [torch.stack([unit_means(one) for one in many]) for many in zip(*latents, strict=True)]
    activities, errors = zip(*map(activity, means), strict=True)
    full_size = frame.full_size or frame.size
    why = _why_no_information(seen[0], first, full_size != frame.size)
    information = _information(first, progress) if why is None else (kl.new_tensor(torch.nan),) * 2
    return CollapseReport(
        first[0].plate,
        tuple(name for one in first for name in unit_distribution(one).units(one.name)),
        frame.size,
        full_size,
        num_samples,
        kl.mean(0),
        kl.std(0) / num_samples**0.5,
        torch.cat(activities),
        torch.cat(errors),
        threshold,
        *information,
        why,
    )


def _check(num_samples: Any, threshold: float) -> None:
    if not isinstance(num_samples, Integral) or num_samples < 3:
        raise ValueError(
            f"num_samples must be an integer >= 3, not {num_samples!r}: fewer do not tell the "
            "noise of the means from their signal, and its error"
        )
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be finite and >= 0, not {threshold!r}")


def _why_no_information(run: Run, latents: Sequence[Latent], is_subsampled: bool) -> str | None:
    if is_subsampled:
        return "the plate is subsampled, and the aggregate is over all data; run it in full"
    whys = ((latent.name, run.why_dependent(latent)) for latent in latents)
    return next((f"site {name!r}: {why}" for name, why in whys if why), None)


def _information(latents: Sequence[Latent], progress: bool) -> tuple[Tensor, Tensor]:
    guides = [latent.guide for latent in latents]
    draws = [Draw.of(guides) for _ in range(default_draws(guides[0].size))]
    given = torch.stack([draw.log_prob.sum(-1) for draw in draws])
    weights = exact_weights(draws[0].log_prob)
    with progress_bar(len(draws) * guides[0].size, progress) as bar:
        aggregate = [log_aggregate(guides, draw, *weights, bar)[0] for draw in draws]
    return draw_mean(given - torch.stack(aggregate))

r"""Whose fault the gap is: the family's, or that of the network that chooses its members."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from ..evidence import EvidenceEstimate, ImportanceWeighting
from ..evidence.checks import check_count
from ..evidence.mean_ratio import MeanLogRatio
from ..evidence.modes import in_eval_mode
from ..evidence.ratios import RatioELBO
from ..evidence.weigher import Weigher
from .free_families import FreeFamilies
from .gap import EvidenceGapEstimate, evidence_gap

__all__ = ["AmortisationGap", "amortisation_gap"]


@dataclass(frozen=True, eq=False)
class AmortisationGap:
    r"""The gap of a guide in two parts: 0-dim tensors in nats, of the whole data set.

    .. math::
        \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation}}
        + \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q)}_{\text{amortisation}}

    Args:
        gap: That of the guide, :math:`q`.
        refitted: The ELBO of :math:`q^*`, of the same families, fitted datum by datum.
    """

    gap: EvidenceGapEstimate
    refitted: EvidenceEstimate

    @property
    def approximation(self) -> Tensor:
        """What no member of the families can reach."""
        return self.gap.evidence.value - self.refitted.value

    @property
    def amortisation(self) -> Tensor:
        """What the guide's choice of a member loses."""
        return self.refitted.value - self.gap.elbo.value

    @property
    def approximation_error(self) -> Tensor:
        """Standard error of the approximation gap."""
        return torch.hypot(self.gap.evidence.standard_error, self.refitted.standard_error)

    @property
    def amortisation_error(self) -> Tensor:
        """Standard error of the amortisation gap."""
        return torch.hypot(self.gap.elbo.standard_error, self.refitted.standard_error)

    def __str__(self) -> str:
        return (
            f"{self.gap}\n"
            f"  approximation gap {self.approximation:.4f} ± {self.approximation_error:.4f} nats\n"
            f"  amortisation gap  {self.amortisation:.4f} ± {self.amortisation_error:.4f} nats"
        )


def amortisation_gap(
    model: Any,
    guide: Any,
    *args: Any,
    estimator: Any = None,
    num_samples: int = 1000,
    num_steps: int = 500,
    num_particles: int = 10,
    lr: float = 0.05,
    progress: bool = True,
    **kwargs: Any,
) -> AmortisationGap:
    r"""Split the gap of a guide into what its family and what its amortisation cost.

    Each distribution of the guide gets parameters of its own, for each datum, from where they are,
    and those are fitted to the ELBO by Adam, its rate going down to 0 by a cosine. Model and guide
    stay as they are. What the fit does not reach is counted as approximation gap. The evidence is
    the larger of two lower bounds, by the guide's weights and by those of the fitted families; of
    few samples the larger of two noisy numbers is too large, if anything. The errors are of the
    evidence and the ELBOs, and not of the fit: where the amortisation gap matters, take more steps
    until it no longer grows.

    Args:
        model: The model.
        guide: A guide whose sites do not depend on each other.
        *args: What both take.
        estimator: What estimates the evidence, as in :func:`evidence_gap`.
        num_samples: Samples for each ELBO.
        num_steps: Steps of the fit.
        num_particles: Particles of a step.
        lr: Adam's first rate.
        progress: Whether work of over a second shows a bar.
        **kwargs: What both take.

    Raises:
        UnsupportedSiteError: A flow or another family without parameters for each datum, or a site
            that depends on another.
        ValueError: A plate is subsampled.

    Law:
        The two parts are the gap. Where the family holds the posterior the approximation gap is 0.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> _ = pyro.set_rng_seed(0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0., 1.))
        ...         pyro.sample("x", dist.Normal(z, 1.), obs=x)
        >>> def shrunk(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.3 * x, 0.7))
        >>> parts = diagnostics.amortisation_gap(model, shrunk, torch.tensor([3., -2.]))
        >>> bool(parts.amortisation > 0.3), bool(parts.approximation < 0.1)
        (True, True)

    References:
        *Inference Suboptimality in Variational Autoencoders* (Cremer, Li & Duvenaud, 2018),
        arXiv 1801.03558.
    """
    check_count("num_steps", num_steps, 1)
    check_count("num_particles", num_particles, 1)
    with in_eval_mode(model, guide):
        if estimator is None:
            estimator = ImportanceWeighting(num_samples, progress=progress)
        settings = {"estimator": estimator, "num_samples": num_samples, "progress": progress}
        gap = evidence_gap(model, guide, *args, **settings, **kwargs)
        weigher = Weigher(model, guide, args, kwargs, None)
        if weigher.layout.subsampled is not None:
            raise ValueError(
                f"plate {weigher.layout.subsampled!r} is subsampled, so that not every datum can "
                "have parameters of its own; give the full data (subsample_size=None)"
            )
        free = FreeFamilies(guide, args, kwargs)
        elbo = RatioELBO(num_particles if weigher.at_once else 1, weigher.layout.nesting)
        bar = tqdm(range(num_steps), desc="refit", delay=1.0, leave=False, disable=not progress)
        _fit(elbo, model, free, args, kwargs, lr, bar)
        bound = MeanLogRatio(num_samples=num_samples, progress=progress)
        refitted = estimator.estimate(model, free, *args, **kwargs)
        tightest = max(gap.evidence, refitted, key=lambda estimate: float(estimate.value))
        if gap.evidence.bound == "lower":
            gap = replace(gap, evidence=tightest)
        return AmortisationGap(gap, bound.estimate(model, free, *args, **kwargs))


def _fit(
    elbo: RatioELBO, model: Any, free: FreeFamilies, args: Any, kwargs: Any, lr: float, steps: Any
) -> None:
    parameters = list(free.families.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    for _ in steps:
        with poutine.block():
            loss = elbo.differentiable_loss(model, free, *args, **kwargs)
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = grad
        optimizer.step()
        scheduler.step()

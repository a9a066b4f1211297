r"""How much of a gradient is signal, and how much the noise of its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..elbo import TraceKL_ELBO
from ..elbo.nonfinite import nonfinite_terms
from ..elbo.tracers import ParamCapture
from ..errors import NonFiniteError
from ..evidence.checks import check_count
from ..evidence.modes import at_rest
from ..tables import table

__all__ = ["GradientSignal", "gradient_signal"]


@dataclass(frozen=True, eq=False)
class GradientSignal:
    r"""The signal-to-noise ratio of the gradient of each parameter; ``print`` shows the weakest.

    Args:
        ratio: By name, :math:`|E[g]| / \sqrt{E|g - E[g]|^2}`, a 0-dim tensor; infinite where there
            is no noise, nan where there is no gradient.
        norm: By name, :math:`|E[g]|`, without what noise adds to it.
        variance: By name, :math:`E|g - E[g]|^2`, summed over the parameter's entries.
        num_samples: Evaluations.
    """

    ratio: Mapping[str, Tensor]
    norm: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    num_samples: int

    def __str__(self) -> str:
        ordered = sorted(self.ratio, key=lambda name: float(self.ratio[name].nan_to_num(-1.0)))
        rows = [["parameter", "|mean gradient|", "signal / noise"]]
        rows += [[n, f"{float(self.norm[n]):.4g}", f"{float(self.ratio[n]):.4g}"] for n in ordered]
        return table(rows, text=("parameter",))


def gradient_signal(
    model: Any,
    guide: Any,
    *args: Any,
    elbo: Any = None,
    num_samples: int = 50,
    **kwargs: Any,
) -> GradientSignal:
    r"""The signal-to-noise ratio of the gradients that a loss gives.

    .. math::
        \widehat{|E[g]|^2} = |\bar g|^2 - \frac1S \hat V, \qquad
        \hat V = \frac{1}{S - 1} \sum_s |g_s - \bar g|^2

    Args:
        model: The model.
        guide: The guide.
        *args: What both take.
        elbo: The loss; :class:`~pyro_elbo.TraceKL_ELBO` by default. Its schedule does not move, and
            its ``terms`` stay those of before.
        num_samples: Evaluations, at least 2.
        **kwargs: What both take.

    Returns:
        The ratio of each parameter; gradients that parameters had are left as they were.

    Raises:
        ValueError: Too few samples, or there is no parameter.
        NonFiniteError: A gradient is nan or infinite; it and the term are named.

    Law:
        Of ``num_particles`` times as many particles the ratio is ``sqrt(num_particles)`` times as
        large.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import diagnostics
        >>> _ = pyro.set_rng_seed(0)
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0., 1.))
        >>> def guide():
        ...     loc = pyro.param("loc", torch.tensor(1.0))
        ...     pyro.sample("z", dist.Normal(loc, 1.0))
        >>> diagnostics.gradient_signal(model, guide).ratio["loc"]  # the KL is closed
        tensor(inf)

    References:
        *Tighter Variational Bounds are Not Necessarily Better* (Rainforth et al., 2018),
        arXiv 1802.04537.
    """
    check_count("num_samples", num_samples, 2)
    elbo = TraceKL_ELBO() if elbo is None else elbo
    parameters = _parameters(elbo, model, guide, args, kwargs)
    if not parameters:
        raise ValueError("neither model nor guide has a parameter that takes a gradient")
    leaves = list(parameters.values())
    samples = []
    with at_rest(elbo):
        for _ in range(num_samples):
            loss = elbo.differentiable_loss(model, guide, *args, **kwargs)
            samples.append(torch.autograd.grad(loss, leaves, allow_unused=True))
            _check_finite(dict(zip(parameters, samples[-1], strict=True)), loss, elbo)
    ratio, norm, variance = {}, {}, {}
    for name, grads in zip(parameters, zip(*samples, strict=True), strict=True):
        present = [grad for grad in grads if grad is not None]
        ratio[name], norm[name], variance[name] = _signal(present, num_samples)
    return GradientSignal(ratio, norm, variance, num_samples)


def _check_finite(gradients: Mapping[str, Tensor | None], loss: Tensor, elbo: Any) -> None:
    bad = [name for name, g in gradients.items() if g is not None and not g.isfinite().all()]
    if bad:
        has_terms = not loss.isfinite() and hasattr(elbo, "decompose")
        where = f": {nonfinite_terms(elbo.terms)}" if has_terms else ""
        raise NonFiniteError(f"the gradient of {bad} is nan or infinite{where}")


def _parameters(elbo: Any, model: Any, guide: Any, args: Any, kwargs: Any) -> dict[str, Tensor]:
    with at_rest(elbo), torch.no_grad(), ParamCapture() as captured:
        elbo.differentiable_loss(model, guide, *args, **kwargs)
    return {name: value for name, value in captured.parameters.items() if value.requires_grad}


def _signal(grads: list[Tensor], num_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    if not grads:
        return torch.tensor(torch.nan), torch.tensor(0.0), torch.tensor(0.0)
    stacked = torch.stack([grad.flatten() for grad in grads])
    mean = stacked.sum(0) / num_samples
    absent = num_samples - len(grads)
    noise = ((stacked - mean).square().sum() + absent * mean.square().sum()) / (num_samples - 1)
    signal = (mean.square().sum() - noise / num_samples).clamp(min=0.0)
    return (signal / noise).sqrt(), signal.sqrt(), noise

r"""View 1: :math:`\log p(x) - \mathrm{KL}(q \| p(z \mid x))`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import ViewELBO
from .closed_forms import Form
from .sites import LatentSite

__all__ = ["TraceGap_ELBO"]


class TraceGap_ELBO(ViewELBO):
    r"""The ELBO by sampled log-ratios: evidence minus the gap.

    .. math::
        \mathrm{ELBO} = E_q[\log p(x, z) - \log q(z)]
                      = \log p(x) - \mathrm{KL}(q(z) \,\|\, p(z \mid x))

    Nothing is taken in closed form, so a sample's log-ratio is :math:`\log p(x)` exactly where the
    guide is the posterior: the estimator's variance vanishes as the gap closes.

    Args:
        *args: What :class:`~pyro_elbo.elbo.ViewELBO` takes: ``num_particles``, ...
        log_evidence: A known value of :math:`\log p(x)` in nats, for ``terms.evidence_gap()``;
            otherwise the particles' importance-weighted bound stands in for it.
        **kwargs: What :class:`~pyro_elbo.elbo.ViewELBO` takes: ``beta``, ...

    Raises:
        ValueError: ``log_evidence`` is no finite number.

    Law:
        At ``beta=1`` and the same seed, loss and gradients are those of
        :class:`pyro.infer.Trace_ELBO`, wherever that is right.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import TraceGap_ELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=torch.tensor(2.))
        >>> def posterior():
        ...     pyro.sample("z", dist.Normal(1., 0.5 ** 0.5))
        >>> log_evidence = dist.Normal(0., 2 ** 0.5).log_prob(torch.tensor(2.))
        >>> terms = TraceGap_ELBO(log_evidence=log_evidence).decompose(model, posterior)
        >>> bool(terms.evidence_gap().gap.abs() < 1e-5)
        True

    References:
        *Variational Inference: A Review for Statisticians* (Blei, Kucukelbir & McAuliffe, 2017),
        arXiv 1601.00670.
    """

    def __init__(
        self, *args: Any, log_evidence: float | Tensor | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if log_evidence is not None:
            self.log_evidence = torch.as_tensor(log_evidence).detach()
            if self.log_evidence.dim() or not self.log_evidence.isfinite():
                raise ValueError(f"log_evidence must be one finite number; got {log_evidence!r}")

    def closed_form(self, site: LatentSite) -> Form:
        """Nothing is taken in closed form."""
        return None

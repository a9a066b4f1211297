r"""View 1: :math:`\log p(x) - \mathrm{KL}(q \| p(z \mid x))`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import ViewELBO
from .closed_forms import Form
from .dependencies import Program
from .path import check_pathwise, pair_at_leaves, path_surrogate, without_scores
from .recording import Branch
from .sites import LatentSite
from .traces import sample_sites

__all__ = ["TraceGap_ELBO"]


class TraceGap_ELBO(ViewELBO):
    r"""The ELBO by sampled log-ratios: evidence minus the gap.

    .. math::
        \mathrm{ELBO} = E_q[\log p(x, z) - \log q(z)]
                      = \log p(x) - \mathrm{KL}(q(z) \,\|\, p(z \mid x))

    Nothing is taken in closed form, so a sample's log-ratio is :math:`\log p(x)` exactly where the
    guide is the posterior: the estimator's variance vanishes as the gap closes.

    With ``path_derivative=True`` the gradient is taken through the samples alone: the guide's score
    at fixed samples, whose mean is 0, is left out. The mean stays; the variance goes to 0 as the
    guide comes to the posterior, where the whole gradient of the guide's own parameters is 0 for
    every sample. Far from the posterior, or where the guide's family does not contain it, the score
    left out may have been a control variate: the variance can then be higher than without. It
    weighs like any other objective, but its variance vanishes at ``beta=1`` only. A step runs the
    guide twice, with the same noise (layers that count their calls, such as BatchNorm, count two).

    Args:
        *args: What :class:`~pyro_elbo.elbo.ViewELBO` takes: ``num_particles``, ...
        path_derivative: Whether the gradient leaves out the guide's score.
        log_evidence: A known value of :math:`\log p(x)` in nats, for ``terms.evidence_gap()``;
            otherwise the particles' importance-weighted bound stands in for it.
        **kwargs: What :class:`~pyro_elbo.elbo.ViewELBO` takes: ``beta``, ...

    Raises:
        ValueError: ``log_evidence`` is no finite number.
        UnsupportedSiteError: ``path_derivative`` meets a guide site that is not reparameterised, or
            a factor of the guide.

    Law:
        At ``beta=1`` and the same seed, loss and gradients are those of
        :class:`pyro.infer.Trace_ELBO`, wherever that is right (it leaves guide-only sites and guide
        factors out of the costs of a score). With ``path_derivative=True``, ``beta=1`` and q equal
        to the posterior, the gradient of what only the guide uses is 0 for every sample (not where
        a ``Delta`` carries a density that depends on parameters, as in ``AutoStructured``).

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
        *Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference*
        (Roeder, Wu & Duvenaud, 2017), arXiv 1703.09194.
    """

    def __init__(
        self,
        *args: Any,
        path_derivative: bool = False,
        log_evidence: float | Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.path_derivative = path_derivative
        if log_evidence is not None:
            self.log_evidence = torch.as_tensor(log_evidence).detach()
            if self.log_evidence.dim() or not self.log_evidence.isfinite():
                raise ValueError(f"log_evidence must be one finite number; got {log_evidence!r}")

    def closed_form(self, site: LatentSite) -> Form:
        """Nothing is taken in closed form."""
        return None

    def _enumerate(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        if not self.path_derivative:
            return super()._enumerate(model, guide, args, kwargs)
        return [self._get_trace(*self._in_parallel(model, guide), args, kwargs)]

    def _trace_pair(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if self.path_derivative and torch.is_grad_enabled():
            return pair_at_leaves(model, guide, args, kwargs)
        return super()._trace_pair(model, guide, args, kwargs)

    def _branch(self, model_trace: Any, guide_trace: Any, program: Program) -> Branch:
        branch = super()._branch(model_trace, guide_trace, program)
        if not self.path_derivative:
            return branch
        sites = list(branch.sites.values())
        guide = sample_sites(guide_trace)
        check_pathwise(sites, guide)
        surrogate = None
        if torch.is_grad_enabled():
            self._check_affine(next(iter(branch.sites), ""))
            surrogate = path_surrogate(sites, guide_trace)
        return Branch({site.name: without_scores(site, guide) for site in sites}, surrogate)

r"""View 2: :math:`E_q[\log p(x, z)] + H[q]`."""

from __future__ import annotations

from .base import ViewELBO
from .closed_forms import Form
from .sites import LatentSite

__all__ = ["TraceEntropy_ELBO"]


class TraceEntropy_ELBO(ViewELBO):
    r"""The ELBO as in EM: expected log joint plus the guide's entropy.

    .. math::
        \mathrm{ELBO} = E_q[\log p(x, z)] + H[q(z)]

    The entropy of each guide site is taken in closed form where its distribution has one; that is
    always right, and can lower or raise the variance of the estimate.

    Args: those of :class:`~pyro_elbo.elbo.ViewELBO` (``num_particles``, ``max_plate_nesting``,
    ``vectorize_particles``, ``beta``, ...).

    Law:
        Its mean is that of :class:`pyro.infer.Trace_ELBO`, and ``terms.sites[name].how`` says
        which entropies were exact.

    Example:
        >>> import math, torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import TraceEntropy_ELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=torch.tensor(2.))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1., 1.))
        >>> terms = TraceEntropy_ELBO().decompose(model, guide)
        >>> math.isclose(terms.entropy, 0.5 * math.log(2 * math.pi * math.e), rel_tol=1e-6)
        True

    References:
        *A View of the EM Algorithm that Justifies Incremental, Sparse, and Other Variants*
        (Neal & Hinton, 1998).
    """

    def closed_form(self, site: LatentSite) -> Form:
        """The entropy."""
        return "entropy"

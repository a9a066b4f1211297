r"""View 3: :math:`E_q[\log p(x \mid z)] - \mathrm{KL}(q \| p(z))`."""

from __future__ import annotations

from .base import ViewELBO
from .closed_forms import Form
from .sites import LatentSite

__all__ = ["TraceKL_ELBO"]


class TraceKL_ELBO(ViewELBO):
    r"""The ELBO as in the VAE: reconstruction minus the KL to the prior.

    .. math::
        \mathrm{ELBO} = E_q[\log p(x \mid z)] - \mathrm{KL}(q(z) \,\|\, p(z))

    The KL of each latent is taken in closed form where ``torch.distributions`` has one and it is
    right: no parent of the site in the model depends on it in the guide (the order of the sites
    proves it, or one run of both with tracked values), both sides have the same plates, scale and
    mask, and no density hides in a ``Delta``. Otherwise it is sampled.
    ``elbo.plan(model, guide)`` says which.

    :class:`pyro.infer.TraceMeanField_ELBO` takes it unconditionally, and is wrong on such sites.

    Args: those of :class:`~pyro_elbo.elbo.ViewELBO` (``num_particles``, ``max_plate_nesting``,
    ``vectorize_particles``, ``beta``, ...).

    Law:
        Its mean is that of :class:`pyro.infer.Trace_ELBO`; a KL marked ``"exact"`` has no
        sampling error given the site's parents.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro_elbo import TraceKL_ELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0., 1.))
        ...     pyro.sample("x", dist.Normal(z, 1.), obs=torch.tensor(2.))
        >>> def guide():
        ...     pyro.sample("z", dist.Normal(1., 0.5))
        >>> elbo = TraceKL_ELBO(beta=4.0)
        >>> terms = elbo.decompose(model, guide)
        >>> terms.kl, terms.weighted_kl
        (tensor(0.8181), tensor(3.2726))

    References:
        *Auto-Encoding Variational Bayes* (Kingma & Welling, 2014), arXiv 1312.6114.
        *beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework*
        (Higgins et al., 2017).
    """

    def closed_form(self, site: LatentSite) -> Form:
        """The KL."""
        return "kl"

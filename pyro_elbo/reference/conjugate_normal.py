"""A normal mean for each datum."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import kl_divergence

from .base import ExactSite, ReferenceProblem, expected_normal_log_prob, unique_name

__all__ = ["ConjugateNormal"]


class _Model(PyroModule):
    prior_loc: Tensor
    prior_scale: Tensor
    noise: Tensor

    def __init__(self, prior: tuple[float, float], noise: float, subsample_size: int | None):
        super().__init__(unique_name("conjugate_normal_model"))
        self.subsample_size = subsample_size
        self.register_buffer("prior_loc", torch.tensor(prior[0]))
        self.register_buffer("prior_scale", torch.tensor(prior[1]))
        self.register_buffer("noise", torch.tensor(noise))

    def forward(self, data: Tensor) -> None:
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            z = pyro.sample("z", dist.Normal(self.prior_loc, self.prior_scale))
            pyro.sample("x", dist.Normal(z, self.noise), obs=data[indices])


class _Guide(PyroModule):
    def __init__(self, num_data: int, subsample_size: int | None):
        super().__init__(unique_name("conjugate_normal_guide"))
        self.subsample_size = subsample_size
        self.loc: Any = PyroParam(torch.linspace(-0.5, 1.0, num_data))
        self.scale: Any = PyroParam(torch.linspace(0.5, 1.2, num_data), constraints.positive)

    def forward(self, data: Tensor) -> None:
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            pyro.sample("z", dist.Normal(self.loc[indices], self.scale[indices]))


class ConjugateNormal(ReferenceProblem):
    r"""A latent mean for each datum: :math:`z_n \sim N(m_0, s_0^2),\ x_n \sim N(z_n, \sigma^2)`.

    The guide :math:`q(z_n) = N(m_n, s_n^2)` contains the posterior.

    Args:
        num_data: Number of data, all in the plate ``"data"``.
        subsample_size: Size of the minibatches.
        prior: Location and scale of the prior.
        noise: Scale of the likelihood.
        seed: Seed of the data.

    Example:
        >>> problem = ConjugateNormal()
        >>> bool(torch.isclose(problem.exact_terms().gap, problem.posterior_kl()))
        True

    References:
        *Bayesian Data Analysis* (Gelman et al., 2013), section 2.5.
    """

    model: _Model
    guide: _Guide
    latents = ("z",)

    def __init__(
        self,
        num_data: int = 5,
        subsample_size: int | None = None,
        prior: tuple[float, float] = (0.3, 1.5),
        noise: float = 0.8,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        spread = (prior[1] ** 2 + noise**2) ** 0.5
        self.data = prior[0] + spread * torch.randn(num_data, generator=generator)
        self.model = _Model(prior, noise, subsample_size)
        self.guide = _Guide(num_data, subsample_size)

    def log_evidence(self) -> Tensor:
        """Each datum is normal with the variances added."""
        model = self.model
        scale = (model.prior_scale**2 + model.noise**2).sqrt()
        return dist.Normal(model.prior_loc, scale).log_prob(self.data).sum()

    def exact_reconstruction(self) -> Tensor:
        """The expected squared error is that of the mean plus the guide's variance."""
        loc, variance = self.guide.loc, self.guide.scale**2
        return expected_normal_log_prob(loc, variance, self.data, self.model.noise).sum()

    def exact_sites(self) -> dict[str, ExactSite]:
        """The one site ``z``."""
        model, loc, scale = self.model, self.guide.loc, self.guide.scale
        prior = expected_normal_log_prob(loc, scale**2, model.prior_loc, model.prior_scale)
        return {"z": ExactSite(prior.sum(), -dist.Normal(loc, scale).entropy().sum())}

    def posterior(self) -> dist.Normal:
        """A normal for each datum, batch shape ``(num_data,)``."""
        precision = self.model.prior_scale**-2 + self.model.noise**-2
        pull = self.model.prior_loc / self.model.prior_scale**2 + self.data / self.model.noise**2
        return dist.Normal(pull / precision, precision**-0.5)

    def posterior_kl(self) -> Tensor:
        """The sum of normal KLs."""
        return kl_divergence(dist.Normal(self.guide.loc, self.guide.scale), self.posterior()).sum()

    def set_guide_to_posterior(self) -> None:
        """Always possible."""
        posterior = self.posterior()
        self.guide.loc = posterior.loc
        self.guide.scale = posterior.scale.expand_as(posterior.loc).clone()

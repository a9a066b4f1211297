"""A global mean, a local mean for each group, and data in each group."""

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

__all__ = ["HierarchicalNormal"]


class _Model(PyroModule):
    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(self, prior: tuple[float, float], subsample_size: int | None):
        super().__init__(unique_name("hierarchical_normal_model"))
        self.subsample_size = subsample_size
        self.register_buffer("prior_loc", torch.tensor(prior[0]))
        self.register_buffer("prior_scale", torch.tensor(prior[1]))
        self.spread: Any = PyroParam(torch.tensor(0.7), constraints.positive)
        self.noise: Any = PyroParam(torch.tensor(0.6), constraints.positive)

    def forward(self, data: Tensor) -> None:
        num_observations, num_groups = data.shape
        mu = pyro.sample("mu", dist.Normal(self.prior_loc, self.prior_scale))
        with pyro.plate("groups", num_groups, self.subsample_size, dim=-1) as indices:
            theta = pyro.sample("theta", dist.Normal(mu, self.spread))
            with pyro.plate("observations", num_observations, dim=-2):
                pyro.sample("x", dist.Normal(theta, self.noise), obs=data[:, indices])


class _Guide(PyroModule):
    def __init__(self, num_groups: int, subsample_size: int | None):
        super().__init__(unique_name("hierarchical_normal_guide"))
        self.subsample_size = subsample_size
        self.loc: Any = PyroParam(torch.tensor(-0.6))
        self.scale: Any = PyroParam(torch.tensor(0.7), constraints.positive)
        self.intercept: Any = PyroParam(torch.linspace(-0.5, 0.8, num_groups))
        self.slope: Any = PyroParam(torch.linspace(0.1, 0.5, num_groups))
        self.group_scale: Any = PyroParam(
            torch.linspace(0.4, 0.6, num_groups), constraints.positive
        )

    def forward(self, data: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(self.loc, self.scale))
        with pyro.plate("groups", data.shape[1], self.subsample_size, dim=-1) as indices:
            loc = self.intercept[indices] + self.slope[indices] * mu
            pyro.sample("theta", dist.Normal(loc, self.group_scale[indices]))


class HierarchicalNormal(ReferenceProblem):
    r"""Two levels, a global and local latents.

    .. math::
        \mu \sim N(m_0, s_0^2),\quad \theta_j \sim N(\mu, \tau^2),\quad
        x_{ij} \sim N(\theta_j, \sigma^2)

    The guide :math:`q(\mu) = N(m, s^2),\ q(\theta_j \mid \mu) = N(a_j + c_j \mu, s_j^2)` contains
    the posterior. The model learns :math:`\tau` and :math:`\sigma`.

    Args:
        num_groups: Groups, the plate ``"groups"`` (dim -1).
        num_per_group: Data in each, the plate ``"observations"`` (dim -2).
        subsample_size: Groups in a minibatch.
        prior: Location and scale of the global prior.
        seed: Seed of the data.

    Example:
        >>> problem = HierarchicalNormal()
        >>> bool(torch.isclose(problem.exact_terms().gap, problem.posterior_kl()))
        True

    References:
        *Bayesian Data Analysis* (Gelman et al., 2013), section 5.4.
    """

    model: _Model
    guide: _Guide
    latents = ("mu", "theta")

    def __init__(
        self,
        num_groups: int = 4,
        num_per_group: int = 3,
        subsample_size: int | None = None,
        prior: tuple[float, float] = (0.5, 1.2),
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        groups = 1.0 + 0.9 * torch.randn(num_groups, generator=generator)
        noise = torch.randn(num_per_group, num_groups, generator=generator)
        self.data = groups + 0.6 * noise
        self.model = _Model(prior, subsample_size)
        self.guide = _Guide(num_groups, subsample_size)

    def log_evidence(self) -> Tensor:
        """All data are jointly normal."""
        model, (rows, groups) = self.model, self.data.shape
        same_group = self._identity(groups).repeat_interleave(rows, 0).repeat_interleave(rows, 1)
        covariance = model.prior_scale**2 + model.spread**2 * same_group
        covariance = covariance + model.noise**2 * self._identity(rows * groups)
        loc = model.prior_loc.expand(rows * groups)
        return dist.MultivariateNormal(loc, covariance).log_prob(self.data.T.flatten())

    def exact_reconstruction(self) -> Tensor:
        """The guide's marginal of each group's mean is normal."""
        guide = self.guide
        loc = guide.intercept + guide.slope * guide.loc
        variance = guide.slope**2 * guide.scale**2 + guide.group_scale**2
        return expected_normal_log_prob(loc, variance, self.data, self.model.noise).sum()

    def exact_sites(self) -> dict[str, ExactSite]:
        """The sites ``mu`` and ``theta``, the latter given the former."""
        model, guide = self.model, self.guide
        mu = expected_normal_log_prob(guide.loc, guide.scale**2, model.prior_loc, model.prior_scale)
        offset = guide.intercept + (guide.slope - 1) * guide.loc
        variance = (guide.slope - 1) ** 2 * guide.scale**2 + guide.group_scale**2
        theta = expected_normal_log_prob(offset, variance, offset.new_zeros(()), model.spread)
        return {
            "mu": ExactSite(mu, -dist.Normal(0.0, guide.scale).entropy()),
            "theta": ExactSite(theta.sum(), -dist.Normal(0.0, guide.group_scale).entropy().sum()),
        }

    def posterior(self) -> dist.MultivariateNormal:
        """The joint of ``(mu, theta_1, ..., theta_J)``."""
        return _joint(*self._posterior_parameters())

    def posterior_kl(self) -> Tensor:
        """The KL of two joint normals."""
        guide = self.guide
        joint = _joint(guide.loc, guide.scale, guide.intercept, guide.slope, guide.group_scale)
        return kl_divergence(joint, self.posterior())

    def set_guide_to_posterior(self) -> None:
        """Always possible."""
        loc, scale, intercept, slope, group_scale = self._posterior_parameters()
        self.guide.loc, self.guide.scale = loc, scale
        self.guide.intercept, self.guide.slope = intercept, slope
        self.guide.group_scale = group_scale

    def _posterior_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        model, (rows, groups) = self.model, self.data.shape
        precision = model.spread**-2 + rows * model.noise**-2
        intercept = self.data.sum(0) / model.noise**2 / precision
        slope = (model.spread**-2 / precision).repeat(groups)
        variance = model.spread**2 + model.noise**2 / rows
        global_precision = model.prior_scale**-2 + groups / variance
        pull = model.prior_loc / model.prior_scale**2 + self.data.mean(0).sum() / variance
        group_scale = (precision**-0.5).repeat(groups)
        return pull / global_precision, global_precision**-0.5, intercept, slope, group_scale

    def _identity(self, size: int) -> Tensor:
        return torch.eye(size, dtype=self.data.dtype, device=self.data.device)


def _joint(
    loc: Tensor, scale: Tensor, intercept: Tensor, slope: Tensor, group_scale: Tensor
) -> dist.MultivariateNormal:
    """The joint normal of ``mu`` and ``theta = intercept + slope * mu + group_scale * noise``."""
    locs = torch.cat([loc.reshape(1), intercept + slope * loc])
    column = torch.cat([scale.reshape(1), slope * scale])
    tril = torch.cat(
        [column.unsqueeze(-1), torch.cat([scale.new_zeros(1, len(slope)), group_scale.diag()])], -1
    )
    return dist.MultivariateNormal(locs, scale_tril=tril)

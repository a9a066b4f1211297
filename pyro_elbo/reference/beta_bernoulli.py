"""The probability of a coin."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import kl_divergence

from .base import ExactSite, ReferenceProblem, unique_name

__all__ = ["BetaBernoulli"]


class _Model(PyroModule):
    prior: Tensor

    def __init__(self, prior: tuple[float, float], subsample_size: int | None):
        super().__init__(unique_name("beta_bernoulli_model"))
        self.subsample_size = subsample_size
        self.register_buffer("prior", torch.tensor(prior))

    def forward(self, data: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(self.prior[0], self.prior[1]))
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            pyro.sample("x", dist.Bernoulli(p), obs=data[indices])


class _Guide(PyroModule):
    def __init__(self, reparameterised: bool) -> None:
        super().__init__(unique_name("beta_bernoulli_guide"))
        self.reparameterised = reparameterised
        self.concentration: Any = PyroParam(torch.tensor([5.0, 2.0]), constraints.positive)

    def forward(self, data: Tensor) -> None:
        beta = dist.Beta(self.concentration[0], self.concentration[1])
        pyro.sample("p", beta.has_rsample_(self.reparameterised))


class BetaBernoulli(ReferenceProblem):
    r"""A coin's probability: :math:`p \sim \mathrm{Beta}(a, b),\ x_n \sim \mathrm{Bernoulli}(p)`.

    The guide, a Beta, contains the posterior. Its gradient is that of implicit reparameterisation,
    or a score-function one.

    Args:
        num_data: Number of tosses, all in the plate ``"data"``.
        subsample_size: Size of the minibatches.
        prior: The prior's two concentrations.
        reparameterised: Whether the guide's samples carry gradients.
        seed: Seed of the data.

    Example:
        >>> problem = BetaBernoulli()
        >>> bool(torch.isclose(problem.exact_terms().gap, problem.posterior_kl()))
        True

    References:
        *Bayesian Data Analysis* (Gelman et al., 2013), section 2.4.
        *Implicit Reparameterization Gradients* (Figurnov, Mohamed & Mnih, 2018), arXiv 1805.08498.
    """

    model: _Model
    guide: _Guide
    latents = ("p",)

    def __init__(
        self,
        num_data: int = 6,
        subsample_size: int | None = None,
        prior: tuple[float, float] = (2.0, 3.0),
        reparameterised: bool = True,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.data = torch.rand(num_data, generator=generator).lt(0.6).to(torch.get_default_dtype())
        self.model = _Model(prior, subsample_size)
        self.guide = _Guide(reparameterised)

    def log_evidence(self) -> Tensor:
        """A ratio of Beta functions."""
        return _log_beta(self.model.prior + self._counts()) - _log_beta(self.model.prior)

    def exact_reconstruction(self) -> Tensor:
        """Counts times the guide's expected log-probabilities."""
        return (self._counts() * self._expected_logs()).sum()

    def exact_sites(self) -> dict[str, ExactSite]:
        """The one site ``p``."""
        concentration, prior = self.guide.concentration, self.model.prior
        logs = self._expected_logs()
        log_prior = ((prior - 1) * logs).sum() - _log_beta(prior)
        log_guide = ((concentration - 1) * logs).sum() - _log_beta(concentration)
        return {"p": ExactSite(log_prior, log_guide)}

    def posterior(self) -> dist.Beta:
        """A Beta with the counts added."""
        return dist.Beta(*(self.model.prior + self._counts()))

    def posterior_kl(self) -> Tensor:
        """The KL of two Betas."""
        return kl_divergence(dist.Beta(*self.guide.concentration), self.posterior())

    def set_guide_to_posterior(self) -> None:
        """Always possible."""
        self.guide.concentration = self.model.prior + self._counts()

    def _counts(self) -> Tensor:
        return torch.stack([self.data.sum(), (1 - self.data).sum()])

    def _expected_logs(self) -> Tensor:
        concentration = self.guide.concentration
        return concentration.digamma() - concentration.sum().digamma()


def _log_beta(concentration: Tensor) -> Tensor:
    return concentration.lgamma().sum() - concentration.sum().lgamma()

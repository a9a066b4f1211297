"""What every reference problem answers exactly."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ExactSite", "ExactTerms", "ReferenceProblem", "expected_normal_log_prob"]


_INSTANCES = count()


def unique_name(name: str) -> str:
    """A name for a module's parameters that no other instance in this process has."""
    return f"{name}_{next(_INSTANCES)}"


@dataclass(frozen=True, eq=False)
class ExactSite:
    """Expectations under the guide of one latent's log-densities, 0-dim, in nats."""

    expected_log_prior: Tensor
    expected_log_guide: Tensor

    @property
    def kl(self) -> Tensor:
        """Log guide minus log prior."""
        return self.expected_log_guide - self.expected_log_prior


@dataclass(frozen=True, eq=False)
class ExactTerms:
    """The exact terms of the ELBO, 0-dim, in nats, with their graph."""

    reconstruction: Tensor
    expected_log_prior: Tensor
    entropy: Tensor
    gap: Tensor

    @property
    def kl(self) -> Tensor:
        """Minus the entropy, minus the expected log prior."""
        return -self.entropy - self.expected_log_prior

    @property
    def expected_log_joint(self) -> Tensor:
        """Reconstruction plus expected log prior."""
        return self.reconstruction + self.expected_log_prior

    @property
    def elbo(self) -> Tensor:
        """The bound."""
        return self.expected_log_joint + self.entropy


class ReferenceProblem(ABC):
    """A model and a guide whose every number is known, for any parameters of theirs.

    All answers are for the full data set, 0-dim tensors in nats with a graph, at the current
    parameters of ``model`` and ``guide``, and so are their gradients. The guide starts away from
    the prior and from the posterior, where errors hide.

    Each instance has names of its own in Pyro's store, so that two of a class share nothing.

    Law:
        ``log_evidence() - exact_terms().elbo == posterior_kl() >= 0``.
    """

    model: nn.Module
    guide: nn.Module
    data: Tensor
    latents: tuple[str, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        """What to pass to the model and the guide."""
        return (self.data,)

    @abstractmethod
    def log_evidence(self) -> Tensor:
        r""":math:`\log p(x)`."""

    @abstractmethod
    def exact_reconstruction(self) -> Tensor:
        r""":math:`E_q[\log p(x \mid z)]`."""

    @abstractmethod
    def exact_sites(self) -> dict[str, ExactSite]:
        """The expected log-densities of each latent, summed over its plates."""

    @abstractmethod
    def posterior(self) -> Any:
        """The exact posterior as a distribution (joint over sites where there are several)."""

    @abstractmethod
    def posterior_kl(self) -> Tensor:
        r""":math:`\mathrm{KL}(q \| p(z \mid x))`, by a closed form of its own."""

    @abstractmethod
    def set_guide_to_posterior(self) -> None:
        """Give the guide the parameters of the posterior.

        Raises:
            ValueError: The guide's family does not contain the posterior.
        """

    def exact_terms(self) -> ExactTerms:
        """Every term of the ELBO."""
        sites = self.exact_sites().values()
        reconstruction = self.exact_reconstruction()
        prior = sum((site.expected_log_prior for site in sites), reconstruction.new_zeros(()))
        guide = sum((site.expected_log_guide for site in sites), reconstruction.new_zeros(()))
        gap = self.log_evidence() - (reconstruction + prior - guide)
        return ExactTerms(reconstruction, prior, -guide, gap)

    def exact_objective(self, beta: float | Mapping[str, float] = 1.0) -> Tensor:
        r""":math:`E_q[\log p(x \mid z)] - \sum_s \beta_s \mathrm{KL}_s`.

        Args:
            beta: One weight, or a weight for each latent.
        """
        objective = self.exact_reconstruction()
        for name, site in self.exact_sites().items():
            weight = beta[name] if isinstance(beta, Mapping) else beta
            objective = objective - weight * site.kl
        return objective

    def parameters(self) -> dict[str, nn.Parameter]:
        """The unconstrained parameters, prefixed by ``model.`` or ``guide.``."""
        sides = {"model": self.model, "guide": self.guide}
        return {
            f"{side}.{name}": parameter
            for side, module in sides.items()
            for name, parameter in module.named_parameters()
        }

    def exact_gradients(self, beta: float | Mapping[str, float] = 1.0) -> dict[str, Tensor]:
        """The gradient of the objective by parameter, 0 where it does not depend on it."""
        parameters = self.parameters()
        objective = self.exact_objective(beta)
        gradients = torch.autograd.grad(objective, list(parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
        }


def expected_normal_log_prob(mean: Tensor, variance: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r""":math:`E[\log N(z; loc, scale)]` of a ``z`` with this mean and variance."""
    square = (mean - loc) ** 2 + variance
    return -0.5 * math.log(2 * math.pi) - scale.log() - 0.5 * square / scale**2

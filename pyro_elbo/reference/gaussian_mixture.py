"""A mixture whose assignments can be enumerated."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import kl_divergence

from .base import ExactSite, ReferenceProblem, expected_normal_log_prob, unique_name

__all__ = ["GaussianMixture"]

Enumerate = Literal["parallel", "sequential"]


class _Model(PyroModule):
    weights: Tensor
    noise: Tensor

    def __init__(self, weights: Tensor, noise: float, subsample_size: int | None):
        super().__init__(unique_name("gaussian_mixture_model"))
        self.subsample_size = subsample_size
        self.register_buffer("weights", weights)
        self.register_buffer("noise", torch.tensor(noise))
        self.locs: Any = PyroParam(torch.linspace(-1.5, 2.0, len(weights)))

    def forward(self, data: Tensor) -> None:
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            c = pyro.sample("c", dist.Categorical(self.weights))
            pyro.sample("x", dist.Normal(self.locs[c], self.noise), obs=data[indices])


class _Guide(PyroModule):
    def __init__(self, num_data: int, num_components: int, infer: dict[str, Any], size: int | None):
        super().__init__(unique_name("gaussian_mixture_guide"))
        self.subsample_size = size
        self.infer: Any = infer
        wave = 1.5 * torch.arange(num_data * num_components).sin()
        self.logits: Any = PyroParam(wave.reshape(num_data, num_components))

    def forward(self, data: Tensor) -> None:
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            pyro.sample("c", dist.Categorical(logits=self.logits[indices]), infer=self.infer)


class GaussianMixture(ReferenceProblem):
    r"""A mixture: :math:`c_n \sim \mathrm{Cat}(\pi),\ x_n \sim N(\mu_{c_n}, \sigma^2)`.

    The guide :math:`q(c_n)`, a table of logits, contains the posterior. Its gradient is a
    score-function one, or exact where the site is enumerated.

    Args:
        num_data: Number of data, all in the plate ``"data"``.
        num_components: Number of components.
        enumerate: ``None``, ``"parallel"`` or ``"sequential"``, for the guide's site.
        subsample_size: Size of the minibatches.
        noise: Scale of a component.
        seed: Seed of the data.

    Raises:
        ValueError: ``enumerate`` is none of these.

    Example:
        >>> problem = GaussianMixture()
        >>> bool(torch.isclose(problem.exact_terms().gap, problem.posterior_kl()))
        True

    References:
        *Pattern Recognition and Machine Learning* (Bishop, 2006), section 9.2.
    """

    model: _Model
    guide: _Guide
    latents = ("c",)

    def __init__(
        self,
        num_data: int = 5,
        num_components: int = 3,
        enumerate: Enumerate | None = None,
        subsample_size: int | None = None,
        noise: float = 0.9,
        seed: int = 0,
    ) -> None:
        if enumerate not in (None, *get_args(Enumerate)):
            raise ValueError(
                f"enumerate is {enumerate!r}; pass None, 'parallel' or 'sequential', the values of "
                "Pyro's infer={'enumerate': ...}"
            )
        generator = torch.Generator().manual_seed(seed)
        self.data = 2.0 * torch.randn(num_data, generator=generator)
        infer = {"enumerate": enumerate} if enumerate else {}
        weights = torch.arange(1.0, num_components + 1)
        self.model = _Model(weights / weights.sum(), noise, subsample_size)
        self.guide = _Guide(num_data, num_components, infer, subsample_size)

    def log_evidence(self) -> Tensor:
        """The components are summed for each datum."""
        return self._log_joint().logsumexp(-1).sum()

    def exact_reconstruction(self) -> Tensor:
        """The guide's mean over components."""
        return (self._probs() * self._log_likelihood()).sum()

    def exact_sites(self) -> dict[str, ExactSite]:
        """The one site ``c``."""
        probs = self._probs()
        log_prior = (probs * self.model.weights.log()).sum()
        return {"c": ExactSite(log_prior, (probs * self.guide.logits.log_softmax(-1)).sum())}

    def posterior(self) -> dist.Categorical:
        """A Categorical for each datum, batch shape ``(num_data,)``."""
        return dist.Categorical(logits=self._log_joint())

    def posterior_kl(self) -> Tensor:
        """The sum of Categorical KLs."""
        return kl_divergence(dist.Categorical(logits=self.guide.logits), self.posterior()).sum()

    def set_guide_to_posterior(self) -> None:
        """Always possible."""
        self.guide.logits = self._log_joint().detach()

    def _probs(self) -> Tensor:
        return self.guide.logits.softmax(-1)

    def _log_likelihood(self) -> Tensor:
        zero = self.data.new_zeros(())
        data = self.data.unsqueeze(-1)
        return expected_normal_log_prob(data, zero, self.model.locs, self.model.noise)

    def _log_joint(self) -> Tensor:
        return self._log_likelihood() + self.model.weights.log()

"""Probabilistic PCA: the autoencoder whose collapse is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import kl_divergence

from .base import ExactSite, ReferenceProblem, expected_normal_log_prob, unique_name

__all__ = ["LinearVAE"]


class _Model(PyroModule):
    def __init__(self, num_features: int, num_units: int, subsample_size: int | None):
        super().__init__(unique_name("linear_vae_model"))
        self.subsample_size = subsample_size
        ramp = torch.linspace(-1.0, 1.0, num_features * num_units)
        self.weight: Any = PyroParam(ramp.cos().reshape(num_features, num_units) - 0.5)
        self.bias: Any = PyroParam(torch.linspace(-0.2, 0.3, num_features))
        self.noise: Any = PyroParam(torch.tensor(0.7), constraints.positive)

    def forward(self, data: Tensor) -> None:
        num_units = self.weight.shape[-1]
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            zeros = self.bias.new_zeros(num_units)
            z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            x = z @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(x, self.noise).to_event(1), obs=data[indices])


class _Guide(PyroModule):
    def __init__(self, num_features: int, num_units: int, subsample_size: int | None):
        super().__init__(unique_name("linear_vae_guide"))
        self.subsample_size = subsample_size
        ramp = torch.linspace(0.0, 2.0, num_features * num_units)
        self.weight: Any = PyroParam(0.3 * ramp.sin().reshape(num_units, num_features))
        self.bias: Any = PyroParam(torch.linspace(0.3, -0.4, num_units))
        self.scale: Any = PyroParam(torch.linspace(0.6, 0.9, num_units), constraints.positive)

    def forward(self, data: Tensor) -> None:
        with pyro.plate("data", len(data), subsample_size=self.subsample_size) as indices:
            loc = self.encode(data[indices])
            pyro.sample("z", dist.Normal(loc, self.scale).to_event(1))

    def encode(self, data: Tensor) -> Tensor:
        """The guide's means, shape ``(num_data, num_units)``."""
        return data @ self.weight.T + self.bias


class LinearVAE(ReferenceProblem):
    r"""Probabilistic PCA: :math:`z_n \sim N(0, I),\ x_n \sim N(W z_n + b, \sigma^2 I)`.

    The guide :math:`q(z_n) = N(A x_n + a, \mathrm{diag}(s^2))` is amortised. It contains the
    posterior where the columns of :math:`W` are orthogonal, as at the maximum of the likelihood,
    where a unit is dead exactly if its eigenvalue of the data's covariance is at most
    :math:`\sigma^2`.

    Args:
        num_data: Number of data, all in the plate ``"data"``.
        num_features: Features of a datum.
        num_units: Latent units, at most ``num_features``.
        subsample_size: Size of the minibatches.
        seed: Seed of the data.

    Raises:
        ValueError: There are more units than features.

    Example:
        >>> problem = LinearVAE()
        >>> bool(torch.isclose(problem.exact_terms().gap, problem.posterior_kl()))
        True
        >>> problem.fit_maximum_likelihood(noise=1.4)
        >>> problem.active_units()
        tensor([ True, False])

    References:
        *Probabilistic Principal Component Analysis* (Tipping & Bishop, 1999).
        *Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse* (Lucas et al., 2019),
        arXiv 1911.02469.
    """

    model: _Model
    guide: _Guide
    latents = ("z",)

    def __init__(
        self,
        num_data: int = 8,
        num_features: int = 4,
        num_units: int = 2,
        subsample_size: int | None = None,
        seed: int = 0,
    ) -> None:
        if num_units > num_features:
            raise ValueError(
                f"num_units is {num_units} and num_features {num_features}; "
                "a decoder has orthogonal columns only with num_units <= num_features"
            )
        generator = torch.Generator().manual_seed(seed)
        scales = torch.linspace(2.0, 0.3, num_features)
        mixing = torch.linalg.qr(torch.randn(num_features, num_features, generator=generator)).Q
        self.data = torch.randn(num_data, num_features, generator=generator) * scales @ mixing
        self.model = _Model(num_features, num_units, subsample_size)
        self.guide = _Guide(num_features, num_units, subsample_size)

    def log_evidence(self) -> Tensor:
        r"""Each datum is :math:`N(b, W W^\top + \sigma^2 I)`."""
        weight, noise = self.model.weight, self.model.noise
        covariance = weight @ weight.T + noise**2 * self._identity(len(weight))
        return dist.MultivariateNormal(self.model.bias, covariance).log_prob(self.data).sum()

    def exact_reconstruction(self) -> Tensor:
        """The guide's variance passes through the weights."""
        weight = self.model.weight
        loc = self.guide.encode(self.data) @ weight.T + self.model.bias
        variance = weight**2 @ self.guide.scale**2
        return expected_normal_log_prob(loc, variance, self.data, self.model.noise).sum()

    def exact_sites(self) -> dict[str, ExactSite]:
        """The one site ``z``."""
        loc, scale = self.guide.encode(self.data), self.guide.scale
        prior = expected_normal_log_prob(loc, scale**2, loc.new_zeros(()), loc.new_ones(()))
        entropy = len(loc) * dist.Normal(0.0, scale).entropy().sum()
        return {"z": ExactSite(prior.sum(), -entropy)}

    def posterior(self) -> dist.MultivariateNormal:
        """A multivariate normal for each datum, batch shape ``(num_data,)``."""
        weight, noise = self.model.weight, self.model.noise
        precision = self._identity(weight.shape[1]) + weight.T @ weight / noise**2
        loc = torch.linalg.solve(precision, ((self.data - self.model.bias) @ weight / noise**2).T).T
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def posterior_kl(self) -> Tensor:
        """The sum of multivariate normal KLs."""
        loc = self.guide.encode(self.data)
        guide = dist.MultivariateNormal(loc, scale_tril=self.guide.scale.diag())
        return kl_divergence(guide, self.posterior()).sum()

    def set_guide_to_posterior(self) -> None:
        """Possible where the decoder's columns are orthogonal.

        Raises:
            ValueError: They are not, so the posterior is correlated and the guide is not.
        """
        weight, noise = self.model.weight.detach(), self.model.noise.detach()
        gram = weight.T @ weight
        off_diagonal = gram - gram.diag().diag()
        if off_diagonal.abs().max() > 1e3 * torch.finfo(gram.dtype).eps * gram.abs().max():
            raise ValueError(
                "the posterior is correlated and the guide is not: the columns of the decoder's "
                "weight must be orthogonal; call fit_maximum_likelihood() first"
            )
        precision = 1 + gram.diag() / noise**2
        self.guide.weight = weight.T / (precision * noise**2).unsqueeze(-1)
        self.guide.bias = -self.guide.weight.detach() @ self.model.bias.detach()
        self.guide.scale = precision**-0.5

    def fit_maximum_likelihood(self, noise: float | None = None) -> None:
        """Give the model the maximum of its likelihood.

        Args:
            noise: A fixed scale of the noise; by default its maximum too.

        Raises:
            ValueError: ``noise`` is not positive; or it is left out, and the units explain all of
                the data's variance, so that the likelihood has no maximum.
        """
        eigenvalues, vectors = self._principal()
        num_units = self.model.weight.shape[1]
        variance = self._noise_variance(eigenvalues, num_units, noise)
        lengths = (eigenvalues[:num_units] - variance).clamp(min=0).sqrt()
        self.model.weight = vectors[:, :num_units] * lengths
        self.model.bias = self.data.mean(0)
        self.model.noise = variance.sqrt()

    def active_units(self) -> Tensor:
        """Which units are not dead at the maximum of the likelihood, shape ``(num_units,)``."""
        eigenvalues, _ = self._principal()
        return eigenvalues[: self.model.weight.shape[1]] > self.model.noise.detach() ** 2

    def _noise_variance(self, eigenvalues: Tensor, num_units: int, noise: float | None) -> Tensor:
        if noise is not None:
            if not 0 < noise < math.inf:
                raise ValueError(f"noise is {noise}; it is a scale: pass a positive, finite number")
            return eigenvalues.new_tensor(noise**2)
        left_over = eigenvalues[num_units:]
        rounding = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[0]
        if len(left_over) == 0 or left_over.mean() <= rounding:
            raise ValueError(
                f"{num_units} units explain all of the data's variance, so the noise has no "
                "maximum of the likelihood; pass noise, or fewer units or more data to LinearVAE"
            )
        return left_over.mean()

    def _principal(self) -> tuple[Tensor, Tensor]:
        eigenvalues, vectors = torch.linalg.eigh(self.data.T.cov(correction=0))
        return eigenvalues.flip(0), vectors.flip(1)

    def _identity(self, size: int) -> Tensor:
        return torch.eye(size, dtype=self.data.dtype, device=self.data.device)

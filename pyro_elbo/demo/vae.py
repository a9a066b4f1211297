r"""A variational autoencoder as an ordinary Pyro model and guide.

.. math::
    z_n \sim N(0, I), \qquad x_n \mid z_n \sim \mathrm{Bernoulli}(\sigma(f(z_n))), \qquad
    q(z_n \mid x_n) = N(\mu(x_n), \mathrm{diag}\,\sigma^2(x_n)).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

__all__ = ["VAE"]


class VAE(nn.Module):
    """Two hidden layers each way; images as rows of pixels.

    Args:
        num_pixels: Pixels of an image.
        num_units: Units of the latent code.
        num_hidden: Width of the hidden layers.

    References:
        *Auto-Encoding Variational Bayes* (Kingma & Welling, 2013), arXiv 1312.6114.
    """

    def __init__(self, num_pixels: int, num_units: int = 16, num_hidden: int = 200) -> None:
        super().__init__()
        self.num_units = num_units
        self.encoder = _network(num_pixels, num_hidden, 2 * num_units)
        self.decoder = _network(num_units, num_hidden, num_pixels)

    def model(self, x: Tensor) -> None:
        """The generative program of binary images, shape [n, pixels]."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The approximate posterior of their codes."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x).to_event(1))

    def prior(self, x: Tensor) -> dist.Normal:
        """The standard normal, one for each image and unit, shape [n, units]."""
        return dist.Normal(x.new_zeros(len(x), self.num_units), 1.0)

    def posterior(self, x: Tensor) -> dist.Normal:
        """The guide's normal for each image and unit, shape [n, units]."""
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp())

    def decode(self, z: Tensor) -> Tensor:
        """The probability that each pixel is 1, shape [..., pixels], for codes [..., units]."""
        return self.decoder(z).sigmoid()


def _network(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden),
        nn.Tanh(),
        nn.Linear(num_hidden, num_hidden),
        nn.Tanh(),
        nn.Linear(num_hidden, num_outputs),
    )

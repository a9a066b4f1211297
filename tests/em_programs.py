"""Programs and steppers that the suites of variational EM share."""

import pyro
import pyro.distributions as dist
import torch
from pyro.optim import SGD
from torch import nn

from pyro_elbo import TraceKL_ELBO, VariationalEM

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
positive = dist.constraints.positive


def model(x):
    mu = pyro.param("mu", torch.tensor(0.5))
    scale = pyro.param("scale", torch.ones(()), constraint=positive)
    with pyro.plate("data", 30, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def guide(x):
    slope = pyro.param("slope", torch.zeros(()))
    width = pyro.param("width", torch.ones(()), constraint=positive)
    with pyro.plate("data", 30, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(slope * x, width))


class Networks:
    """Plain functions around two networks."""

    def __init__(self):
        self.encoder, self.decoder = nn.Linear(1, 2), nn.Linear(1, 1)

    def model(self, x):
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z).squeeze(-1), 1.0), obs=x)

    def guide(self, x):
        encoder = pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x[:, None]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def em(optims=(0.01, 0.01), loss=None, programs=(model, guide), **kwargs):
    e_optim, m_optim = (SGD({"lr": lr}) if isinstance(lr, float) else lr for lr in optims)
    return VariationalEM(*programs, e_optim, m_optim, loss or TraceKL_ELBO(), **kwargs)


def values():
    return {name: v.detach().clone() for name, v in pyro.get_param_store().named_parameters()}


def moved_by(before):
    return {name for name, value in values().items() if not torch.equal(before[name], value)}

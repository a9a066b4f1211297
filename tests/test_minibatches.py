"""A latent outside the data's plate beside minibatches: its KL is to be counted once per epoch."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from support import LOSSES

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
DATA = torch.linspace(-1.0, 3.0, 20, dtype=torch.float64)


def model(batch, scale=1.0, size=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
    subsample = None if size is None else torch.arange(len(batch))
    with pyro.plate("data", size or len(batch), subsample=subsample), poutine.scale(scale=scale):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=batch)


def guide(batch, scale=1.0, size=None):
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("w", dist.Normal(loc, 0.5))
    subsample = None if size is None else torch.arange(len(batch))
    with pyro.plate("data", size or len(batch), subsample=subsample), poutine.scale(scale=scale):
        pyro.sample("z", dist.Normal(0.5 * batch, 0.7))


def train(elbo, *batches, **kwargs):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches:
            svi.step(batch, **kwargs)
    return [str(warning.message) for warning in caught]


@loss_classes
@pytest.mark.parametrize("kwargs", [{"scale": 4.0}, {"size": 20}], ids=["scaled", "subsampled"])
def test_scaled_minibatches_are_not(cls, kwargs):
    assert not train(cls(), *DATA.split(5), **kwargs)


def test_neither_is_the_full_batch_nor_another_order_of_it():
    assert not train(TraceKL_ELBO(num_particles=3), DATA, DATA, DATA)
    assert not train(TraceKL_ELBO(), DATA, DATA.flip(0))


def test_neither_is_a_latent_that_is_weighed_by_name_nor_an_evaluation():
    assert not train(TraceKL_ELBO(beta={"w": 0.25}), *DATA.split(5))
    elbo = TraceKL_ELBO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in DATA.split(5):
            elbo.loss(model, guide, batch)
            elbo.decompose(model, guide, batch)


def test_neither_is_a_reparameterised_latent():
    @poutine.reparam(config={"z": LocScaleReparam(0.0)})
    def decentered():
        model(DATA)

    guide = AutoNormal(decentered)
    svi = SVI(decentered, guide, pyro.optim.Adam({"lr": 0.01}), TraceGap_ELBO())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            svi.step()

"""Vectorised particles of a program that mixes them up are refused, by all losses."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO
from pyro_elbo.errors import UnsupportedSiteError
from pyro_elbo.evidence import ImportanceWeighting

LOSSES = (TraceGap_ELBO, TraceEntropy_ELBO, TraceKL_ELBO)
MANY = {"num_particles": 5, "vectorize_particles": True}


def guide(x):
    loc = pyro.param("loc", torch.ones(3))
    pyro.sample("w", dist.Normal(loc, 0.5).to_event(1))


def program(mean):
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean(w, x), 1.0), obs=x[:, 0])

    return model


MIXING = {
    "sum over everything": lambda w, x: w.sum(),
    "first from the left": lambda w, x: w[0].sum() * torch.ones(len(x)),
    "a dim too many": lambda w, x: (x * w.unsqueeze(-2)).sum(-1).unsqueeze(0),
}
RIGHT = {
    "sum from the right": lambda w, x: w.sum(-1),
    "first from the right": lambda w, x: w[..., 0],
    "product": lambda w, x: (w * x).sum(-1),
}


@pytest.fixture
def x():
    return torch.randn(4, 3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mean", MIXING.values(), ids=MIXING.keys())
def test_a_program_that_mixes_samples_up_is_refused(loss, mean, x):
    elbo = loss(**MANY, max_plate_nesting=1)
    svi = SVI(program(mean), guide, pyro.optim.SGD({"lr": 0.1}), elbo)
    refused = pytest.raises(UnsupportedSiteError, match=r"site 'x': .* count dims from the right")
    for _ in range(2):
        with pyro.validation_enabled(False), refused:
            svi.step(x)
    assert torch.equal(pyro.param("loc").detach(), torch.ones(3))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("mean", RIGHT.values(), ids=RIGHT.keys())
def test_a_program_that_does_not_is_not(loss, mean, x):
    loss(**MANY, max_plate_nesting=1).decompose(program(mean), guide, x)
    loss(num_particles=5).decompose(program(MIXING["sum over everything"]), guide, x)


def test_the_check_draws_nothing_and_is_made_once(x):
    model, calls = program(RIGHT["first from the right"]), []

    def counted(x):
        calls.append(x)
        model(x)

    pyro.set_rng_seed(0)
    elbo = TraceGap_ELBO(**MANY, max_plate_nesting=1)
    elbo.decompose(counted, guide, x)
    after_first, drawn = len(calls), torch.rand(())
    elbo.decompose(counted, guide, x)
    assert len(calls) == after_first + 1
    pyro.set_rng_seed(0)
    unchecked = TraceGap_ELBO(**MANY, max_plate_nesting=1)
    unchecked._meet(counted, guide)
    unchecked._is_new = False
    unchecked.decompose(counted, guide, x)
    assert torch.equal(torch.rand(()), drawn)


def test_dropout_is_no_reason_to_refuse(x):
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1))
    model = program(lambda w, x: network(w).squeeze(-1))
    TraceGap_ELBO(**MANY, max_plate_nesting=1).decompose(model, guide, x)


def test_an_autoguide_with_subsampling_is_checked_on_its_own_minibatch():
    def model(x):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(level + z, 1.0), obs=x[index])

    def mixing(x):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=2) as index:
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(level.mean() + z, 1.0), obs=x[index])

    x = torch.randn(6)
    TraceKL_ELBO(**MANY, max_plate_nesting=1).decompose(model, AutoNormal(model), x)
    with pytest.raises(UnsupportedSiteError, match="site 'x'"):
        pyro.clear_param_store()
        TraceKL_ELBO(**MANY, max_plate_nesting=1).decompose(mixing, AutoNormal(mixing), x)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_point_that_rounds_otherwise_alone_is_no_mixing(loss):
    """A matrix product of many samples rounds unlike that of one, and a Delta has one point."""

    def rounded(z):
        return z if z.dim() == 0 else torch.nextafter(z, torch.tensor(torch.inf))

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(w, 1.0), obs=torch.tensor(0.5))

    def guide():
        z = pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.tensor(0.3)), 0.5))
        pyro.sample("w", dist.Delta(rounded(z), log_density=torch.tensor(-0.7)))

    assert loss(**MANY, max_plate_nesting=0).decompose(model, guide).elbo.isfinite()


def mean_of(size):
    def mixing(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(size), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w.mean(), 1.0), obs=x)

    return mixing


SEEDS = [pytest.param(range(8, 20)), pytest.param(range(20, 80), marks=pytest.mark.slow)]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("size", [1, 5])
def test_samples_that_lie_close_together_are_no_proof(size, seeds):
    """A default AutoNormal draws within 0.1 of a point, so that a mean is nearly each of them."""
    mixing = mean_of(size)
    torch.set_default_dtype(torch.float32)
    for seed in seeds:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        elbo = TraceKL_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
        with pytest.raises(UnsupportedSiteError, match="site 'x'"):
            elbo.decompose(mixing, AutoNormal(mixing), torch.randn(5))


@pytest.mark.parametrize("seeds", SEEDS)
def test_evidence_of_samples_that_lie_close_together_is_estimated_one_by_one(seeds):
    mixing = mean_of(5)
    torch.set_default_dtype(torch.float32)
    for seed in seeds:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoNormal(mixing)
        with pytest.warns(UserWarning, match="than at each alone"):
            ImportanceWeighting(num_samples=2).estimate(mixing, guide, torch.randn(5))


def test_a_program_is_looked_at_where_its_samples_are_and_farther_apart(x):
    calls = []

    def counted(x):
        calls.append(x)
        program(RIGHT["first from the right"])(x)

    TraceGap_ELBO(**MANY, max_plate_nesting=1).decompose(counted, guide, x.double())
    assert len(calls) == 6

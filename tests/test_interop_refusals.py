"""What cannot be labelled draws is refused, nothing is changed, and ArviZ reads the rest."""

from __future__ import annotations

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from labelled import conjugate, log_normal, posterior, shared, shared_posterior, values
from pyro.infer.autoguide import AutoNormal
from support import assert_mean

from pyro_elbo import UnsupportedSiteError, to_inference_data

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
TABLE = torch.arange(40.0, dtype=torch.float64).reshape(4, 10)


def nested():
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    rows, columns = pyro.plate("rows", 4, 3, dim=-2), pyro.plate("columns", 10, 5, dim=-1)
    with rows as i:
        level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
        with columns as j:
            loc = level + weights[..., 0]
            z = pyro.sample("z", dist.Normal(torch.stack([loc, loc], -1), 1.0).to_event(1))
            pyro.deterministic("sum", z.sum(-1))
            pyro.deterministic("twice", 2 * z, event_dim=1)
            pyro.deterministic("positive", z > 0)
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=TABLE[i][:, j])


def nested_guide():
    pyro.sample("weights", dist.Normal(torch.ones(2), 0.5).to_event(1))
    with pyro.plate("rows", 4, 3, dim=-2):
        level = pyro.sample("level", dist.Normal(torch.ones(()), 0.5))
        with pyro.plate("columns", 10, 5, dim=-1):
            z = dist.Normal(level[..., None].expand(*level.shape[:-1], 5, 2), 0.5)
            pyro.sample("z", z.to_event(1))


def zoo():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    gamma = pyro.sample("gamma", dist.Gamma(torch.full((), 2.0), 2.0))
    pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Normal(z, gamma))
        pyro.sample("x", dist.Normal(y, 1.0), obs=X)


def z_guide():
    pyro.sample("z", dist.Normal(torch.zeros(()), 0.5))


def test_structure_that_changes_from_draw_to_draw_is_refused():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z:
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    def guide():
        pyro.sample("z", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="'x' .*all draws need the same sites"):
        to_inference_data(model, guide, num_samples=30, vectorize_particles=False)


def test_data_that_change_from_draw_to_draw_are_refused():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.randn(()))

    for at_once, why in {False: "'x' has other data", True: "'x' is something else"}.items():
        with pytest.raises(ValueError, match=why):
            to_inference_data(model, z_guide, num_samples=30, vectorize_particles=at_once)


MIXERS = {
    "deterministic": lambda z: pyro.deterministic("y", z.mean()),
    "integer": lambda z: pyro.deterministic("y", (z > 0).sum()),
    "data": lambda z: pyro.sample("y", dist.Normal(z.mean(), 1.0), obs=X[0]),
    "shape": lambda z: pyro.deterministic("y", torch.cat([z.reshape(-1), z.new_zeros(1)])),
    "noise": lambda z: pyro.sample("y", dist.Normal(z + torch.randn(()), 1.0), obs=X[0]),
}


@pytest.mark.parametrize("how", MIXERS)
def test_a_model_that_mixes_draws_is_refused(how):
    def model():
        MIXERS[how](pyro.sample("z", dist.Normal(torch.zeros(()), 1.0)))

    with pytest.raises(ValueError, match="site 'y' .*vectorize_particles=False"):
        to_inference_data(model, z_guide, num_samples=7)


def test_a_plate_that_brings_another_minibatch_each_time_is_refused():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        at = torch.randperm(1000)[:3]
        with pyro.plate("data", 1000, subsample=at):
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)

    with pytest.raises(ValueError, match="plate 'data' is given other indices"):
        to_inference_data(model, z_guide, num_samples=7)


def test_dims_without_a_plate_are_refused():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([7, 3]), obs=X)

    with (
        pyro.validation_enabled(False),
        pytest.raises(UnsupportedSiteError, match="'x'.*in no plate"),
    ):
        to_inference_data(model, z_guide, num_samples=1)


@pytest.mark.parametrize("name", ["chain", "draw"])
def test_names_that_arviz_needs_are_refused(name):
    def site():
        pyro.sample(name, dist.Normal(torch.zeros(()), 1.0))

    def plate():
        with pyro.plate(name, 3):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    for model in (site, plate):
        pyro.clear_param_store()
        with pytest.raises(ValueError, match=f"{name}.* rename the"):
            to_inference_data(model, AutoNormal(model), num_samples=7)


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_the_number_of_draws_is_a_positive_integer(count, error):
    with pytest.raises(error, match="num_samples"):
        to_inference_data(conjugate, posterior, X, num_samples=count)


def test_nothing_is_changed():
    layer = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout(0.0))
    guide = AutoNormal(zoo)
    guide()

    def model():
        pyro.module("layer", layer)
        zoo()

    before = {name: value.clone() for name, value in pyro.get_param_store().items()}
    data = to_inference_data(model, guide, num_samples=7)
    store = {n: v for n, v in pyro.get_param_store().items() if not n.startswith("layer")}
    assert store.keys() == before.keys()
    assert all(torch.equal(store[name], value) for name, value in before.items())
    assert layer.training and guide.training and torch.is_grad_enabled()
    x = X.clone()
    data["observed_data"]["x"].values[:] = 0.0
    assert torch.equal(X, x)


def test_the_seed_decides_the_draws():
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(5)
        runs.append(to_inference_data(nested, nested_guide, num_samples=7))
    for group in ("posterior", "posterior_predictive", "prior"):
        for name in runs[0][group].data_vars:
            assert torch.equal(values(runs[0], group, name), values(runs[1], group, name))


def far(x):
    pyro.sample("mu", dist.Normal(torch.full((), 5.0), 0.5))


@pytest.mark.filterwarnings("ignore")  # what ArviZ does to pandas and matplotlib
def test_arviz_reads_them():
    data = to_inference_data(shared, shared_posterior, X, num_samples=500)
    assert [*az.summary(data, kind="stats").index] == ["mu"]
    other = to_inference_data(shared, far, X, num_samples=500)
    order = az.compare({"far": other, "near": data}).index
    assert [*order] == ["near", "far"]
    plot = az.plot_posterior if az.__version__.startswith("0.") else az.plot_dist
    plot(data)


@pytest.mark.filterwarnings("ignore")  # what ArviZ does to pandas and matplotlib
def test_leave_one_out_is_that_of_the_closed_form():
    """Each datum given the others: N(sum of others / 3, 1 + 1 / 3)."""
    exact = log_normal(X, (X.sum() - X) / 3, (4 / 3) ** 0.5)
    found = []
    for _ in range(10):
        data = to_inference_data(shared, shared_posterior, X, num_samples=4000)
        loo = az.loo(data, pointwise=True)
        found.append(torch.as_tensor(getattr(loo, "loo_i", getattr(loo, "elpd_i", None)).values))
    assert_mean(torch.stack(found), exact)

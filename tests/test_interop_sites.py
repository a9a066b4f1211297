"""Labelled draws of every kind of site: auxiliary, enumerated, masked, reparameterised."""

from __future__ import annotations

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from auto_guides import GUIDES
from labelled import conjugate, has_group, log_normal, posterior, sizes, values, wrong
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam, SplitReparam
from support import assert_close, assert_mean

from pyro_elbo import to_inference_data

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
LARGE = 20_000
SAMPLED = {"chain": 1, "draw": 60}


def zoo():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    gamma = pyro.sample("gamma", dist.Gamma(torch.full((), 2.0), 2.0))
    pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 3):
        y = pyro.sample("y", dist.Normal(z, gamma))
        pyro.sample("x", dist.Normal(y, 1.0), obs=X)


@pytest.mark.parametrize("name", GUIDES)
def test_auxiliary_sites_of_autoguides_are_left_out(name):
    data = to_inference_data(zoo, GUIDES[name](zoo), num_samples=60)
    latents = {
        "z": SAMPLED,
        "gamma": SAMPLED,
        "weights": {**SAMPLED, "weights_dim_0": 3},
        "y": {**SAMPLED, "data": 3},
    }
    assert sizes(data, "posterior") == sizes(data, "prior") == latents
    likelihood = log_normal(X, values(data, "posterior", "y"), 1.0)
    assert_close(values(data, "log_likelihood", "x"), likelihood, scale=50.0)
    assert (values(data, "posterior", "gamma") > 0).all()


def mixture(scale=1.0):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", 3, subsample_size=2) as at, poutine.scale(scale=scale):
        c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc + 2 * c, 0.7), obs=1.5 + 0.2 * X[at])


def loc_guide(scale=1.0):
    pyro.sample("loc", dist.Normal(0.5, 0.4))


def test_latents_that_the_model_enumerates_are_drawn_given_the_rest():
    data = to_inference_data(mixture, loc_guide, num_samples=LARGE, scale=3.0)
    loc, c = values(data, "posterior", "loc"), values(data, "posterior", "c")
    x, weight = values(data, "observed_data", "x"), torch.tensor(0.3)
    on, off = (log_normal(x, loc[:, None] + 2 * k, 0.7) for k in (1, 0))
    on, off = on + weight.log(), off + (1 - weight).log()
    assert_mean(c - (on - torch.logaddexp(on, off)).exp(), torch.zeros(2))
    assert_mean(loc[:, None] * (c - (on - torch.logaddexp(on, off)).exp()), torch.zeros(2))
    given = log_normal(x, loc[:, None] + 2 * c, 0.7)
    assert_close(values(data, "log_likelihood", "x"), given, scale=50.0)
    ratio = log_normal(loc, 0.0, 1.0) - log_normal(loc, 0.5, 0.4)
    exact = torch.logaddexp(on, off).sum(-1) + ratio
    assert_close(values(data, "sample_stats", "log_weight"), exact, scale=50.0)
    residual = values(data, "posterior_predictive", "x") - loc[:, None] - 2 * c
    assert_mean(residual**2, torch.full((2,), 0.49))
    assert_mean(values(data, "prior", "c"), torch.full((2,), 0.3))
    assert "enumerated latents c" in data["log_likelihood"].attrs["notes"]


def discrete(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x)


@pytest.mark.parametrize("enumerate", [None, "parallel", "sequential"])
def test_discrete_latents_are_sampled_whatever_the_guide_asks_for(enumerate):
    def guide(x):
        with pyro.plate("data", len(x)):
            k = dist.Categorical(torch.tensor([0.6, 0.3, 0.1]))
            pyro.sample("k", k, infer={"enumerate": enumerate})

    data = to_inference_data(discrete, guide, X, num_samples=2000)
    k = values(data, "posterior", "k")
    assert k.dtype == torch.int64 and k.shape == (2000, 3)
    assert_mean((k == 2).double(), torch.full((3,), 0.1))
    assert_close(values(data, "log_likelihood", "x"), log_normal(X, k.double(), 1.0), scale=10.0)


MASK = torch.tensor([True, False, True])


def masked():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", 3):
        with poutine.mask(mask=MASK):
            pyro.sample("x", dist.Normal(z, 1.0), obs=X)
        pair = dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1)
        pyro.sample("y", pair.mask(~MASK), obs=torch.stack([X, X], -1))
        pyro.sample("part", dist.Normal(z, 1.0), obs=X, obs_mask=MASK)
        with poutine.mask(mask=False):
            pyro.sample("none", dist.Normal(z, 1.0), obs=X)
        pyro.sample("whole", dist.Normal(z, 1.0).mask(True), obs=X)


@pytest.mark.filterwarnings("ignore")  # what ArviZ does to pandas and matplotlib
def test_masked_data_are_left_out():
    data = to_inference_data(masked, AutoNormal(masked), num_samples=60)
    for group in ("log_likelihood", "posterior_predictive", "prior_predictive", "observed_data"):
        assert {*data[group].data_vars} == {"x", "y", "part_observed", "whole"}
        assert data[group]["x_data"].values.tolist() == [0, 2]
        assert data[group]["y_data"].values.tolist() == [1]
    likelihood = log_normal(X, values(data, "posterior", "z")[:, None], 1.0)
    for name in ("x", "part_observed"):
        found = values(data, "log_likelihood", name)
        assert_close(found, likelihood[:, MASK], scale=10.0)
        assert_close(values(data, "observed_data", name), X[MASK])
    assert_close(values(data, "log_likelihood", "y"), 2 * likelihood[:, [1]], scale=10.0)
    assert sizes(data, "posterior_predictive")["y"] == {**SAMPLED, "y_entry": 1, "y_dim_0": 2}
    assert sizes(data, "log_likelihood")["whole"] == {**SAMPLED, "data": 3}
    imputed, part = values(data, "posterior", "part_unobserved"), values(data, "posterior", "part")
    assert_close(part, torch.where(MASK, X, imputed))
    stats = data["sample_stats"]
    assert_close(torch.tensor(stats["log_weight"].values), torch.tensor(stats["elbo"].values), 50.0)
    assert "x, y, part_observed, none" in data["posterior"].attrs["notes"]
    assert az.loo(data, var_name="x", pointwise=True).n_data_points == 2


def masked_by_draw():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("data", 3), poutine.mask(mask=(z[..., None] if z.dim() == 0 else z) > 0):
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_mask_that_depends_on_a_draw_hides_the_datum_there(at_once):
    data = to_inference_data(masked_by_draw, z_guide, num_samples=60, vectorize_particles=at_once)
    z = values(data, "posterior", "z")[:, None]
    exact = torch.where(z > 0, log_normal(X, z, 1.0), 0.0)
    assert_close(values(data, "log_likelihood", "x"), exact, scale=10.0)


def z_guide():
    pyro.sample("z", dist.Normal(torch.zeros(()), 0.5))


def reparameterised():
    config = {"z": LocScaleReparam(0.0), "v": SplitReparam([1, 2], -1)}
    with poutine.reparam(config=config):
        z = pyro.sample("z", dist.Normal(torch.ones(()), 2.0))
        v = pyro.sample("v", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 3):
        pyro.sample("x", dist.Normal(z + v.sum(-1), 1.0), obs=X)


def test_reparameterised_latents_are_there_under_their_names():
    data = to_inference_data(reparameterised, AutoNormal(reparameterised), num_samples=60)
    found = {name: values(data, "posterior", name) for name in data["posterior"].data_vars}
    assert_close(found["z"], 1 + 2 * found["z_decentered"], scale=10.0)
    assert_close(found["v"], torch.cat([found["v_split_0"], found["v_split_1"]], -1))
    assert [*data["log_likelihood"].data_vars] == ["x"]
    assert not has_group(data, "prior") and "no prior" in data["posterior"].attrs["notes"]


def test_a_factor_counts_in_the_weights_and_is_no_datum():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("bonus", 3 * z)

    data = to_inference_data(model, z_guide, num_samples=60)
    z = values(data, "posterior", "z")
    exact = log_normal(z, 0.0, 1.0) + 3 * z - log_normal(z, 0.0, 0.5)
    assert_close(values(data, "sample_stats", "log_weight"), exact, scale=10.0)
    assert "bonus" in data["posterior"].attrs["notes"]
    for group in ("log_likelihood", "observed_data", "posterior_predictive"):
        assert not has_group(data, group)


def test_an_improper_prior_has_no_draws():
    def model():
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[0])

    data = to_inference_data(model, z_guide, num_samples=60)
    assert not has_group(data, "prior") and sizes(data, "posterior_predictive") == {"x": SAMPLED}
    assert "no prior" in data["posterior"].attrs["notes"]


def test_one_draw_and_no_latent():
    data = to_inference_data(conjugate, posterior, X, num_samples=1)
    for group in ("posterior", "prior"):
        assert sizes(data, group)["z"] == {"chain": 1, "draw": 1, "data": 3}
    assert sizes(data, "log_likelihood")["x"] == {"chain": 1, "draw": 1, "data": 3}
    data = to_inference_data(
        lambda: pyro.sample("x", dist.Normal(X[0], 1.0), obs=X[1]), lambda: None
    )
    assert sizes(data, "log_likelihood") == {"x": {"chain": 1, "draw": 1000}}


def test_single_precision_stays():
    data = to_inference_data(conjugate, wrong, X.float(), num_samples=60)
    torch.set_default_dtype(torch.float32)
    data = to_inference_data(conjugate, wrong, X.float(), num_samples=60)
    for group in ("posterior", "log_likelihood", "prior", "observed_data"):
        assert {array.dtype for array in data[group].data_vars.values()} == {np.dtype("float32")}


def test_draws_one_by_one_for_models_that_cannot_run_at_once():
    def model():
        locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.deterministic("mean", locs.mean())
        pyro.sample("x", dist.Normal(locs[int(z)], 1.0), obs=X[0])

    def guide():
        pyro.sample("locs", dist.Normal(torch.ones(2), 1.0).to_event(1))
        pyro.sample("z", dist.Bernoulli(0.3))

    with pytest.raises(ValueError) as error:
        to_inference_data(model, guide, num_samples=60)
    assert "vectorize_particles=False" in error.value.__notes__[0]
    data = to_inference_data(model, guide, num_samples=60, vectorize_particles=False)
    locs, z = values(data, "posterior", "locs"), values(data, "posterior", "z").long()
    likelihood = log_normal(X[0], locs[torch.arange(60), z], 1.0)
    assert_close(values(data, "log_likelihood", "x"), likelihood, scale=10.0)
    assert_close(values(data, "posterior", "mean"), locs.mean(-1), scale=1.0)
    assert len({*values(data, "prior", "locs").flatten().tolist()}) == 120

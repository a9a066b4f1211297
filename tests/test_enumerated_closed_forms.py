"""Closed forms, dims of events and paths beside enumerated sites."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from support import LOSSES, assert_close, assert_mean
from torch.distributions import kl_divergence

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO

DATA = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
kinds = pytest.mark.parametrize("kind", ["parallel", "sequential"])


def model():
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(torch.zeros(2) + c[..., None], 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) + w.sum(-1) + c, 1.0), obs=DATA)


def guide(kind):
    def program():
        loc = pyro.param("loc", torch.tensor([0.5, -1.0]))
        pyro.sample("w", dist.Normal(loc, 0.5).to_event(1))
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.6)), infer={"enumerate": kind})
        with pyro.plate("data", 3):
            z = dist.Normal(loc + 0.5 * c[..., None] + DATA[:, None], 0.5)
            pyro.sample("z", z.to_event(1))

    return program


@kinds
@pytest.mark.parametrize("vectorized", [False, True])
def test_the_kl_of_each_dim_beside_an_enumerated_site(kind, vectorized):
    elbo = TraceKL_ELBO(num_particles=2, vectorize_particles=vectorized)
    terms = elbo.decompose(model, guide(kind))
    loc = torch.tensor([0.5, -1.0])
    exact = kl_divergence(dist.Normal(loc, 0.5), dist.Normal(torch.zeros(2), 1.0))
    assert_close(terms.sites["w"].kl_per_dimension, exact, 10.0)
    assert_close(terms.sites["w"].kl, exact.sum(), 10.0)
    by_label = [
        kl_divergence(dist.Normal(loc + 0.5 * c + DATA[:, None], 0.5), dist.Normal(c, 1.0))
        for c in torch.tensor([0.0, 1.0])
    ]
    exact = 0.4 * by_label[0] + 0.6 * by_label[1]
    site = terms.sites["z"]
    assert site.how["kl"] == "exact"
    assert_close(site.kl_per_dimension, exact, 100.0)
    assert_close(site.kl, exact.sum(-1), 100.0)


@kinds
@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_the_mean_is_that_of_traceenum_elbo(cls, kind):
    kwargs = {"num_particles": 10, "vectorize_particles": True, "max_plate_nesting": 1}
    rows = []
    for seed in range(60):
        values = []
        for elbo in (cls(**kwargs), TraceEnum_ELBO(**kwargs)):
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            loss = elbo.loss_and_grads(model, guide(kind))
            grad = pyro.get_param_store()._params["loc"].grad
            values.append(torch.cat([grad, torch.tensor([loss])]))
        rows.append(values[0] - values[1])
    assert_mean(torch.stack(rows), torch.zeros(3))


def mixture():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(mu + 2 * c, 1.0), obs=DATA)


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_path_derivative_beside_a_marginalised_site(vectorized):
    pyro.set_rng_seed(0)
    auto = AutoNormal(poutine.block(mixture, hide=["c"]), init_scale=0.5)
    kwargs = {"num_particles": 4, "vectorize_particles": vectorized}
    plain = TraceGap_ELBO(**kwargs)
    path = TraceGap_ELBO(path_derivative=True, **kwargs)
    plain.loss(mixture, auto)
    path.loss(mixture, auto)
    rows = []
    for seed in range(100):
        values = []
        for elbo in (plain, path):
            for parameter in auto.parameters():
                parameter.grad = None
            pyro.set_rng_seed(seed)
            loss = elbo.loss_and_grads(mixture, auto)
            values.append(torch.stack([*(p.grad for p in auto.parameters()), torch.tensor(loss)]))
        rows.append(values[0] - values[1])
    rows = torch.stack(rows)
    assert_mean(rows, torch.zeros(3))
    assert rows[:, 1].any()
    assert path.plan(mixture, auto)["mu"].gradient == "path derivative"


def test_a_partly_observed_label_is_summed_out_by_config_enumerate():
    mask = torch.tensor([True, False, False])
    labels = torch.tensor([1.0, 0.0, 0.0])

    def partly():
        with pyro.plate("data", 3):
            p = torch.tensor(0.3)
            c = pyro.sample("c", dist.Bernoulli(p), obs=labels, obs_mask=mask)
            pyro.sample("x", dist.Normal(2 * c, 1.0), obs=DATA)

    def nothing():
        pass

    with pytest.raises(ValueError, match=r"'c_unobserved'.*config_enumerate\(model\)"):
        TraceGap_ELBO().loss(partly, nothing)
    joint = [
        dist.Bernoulli(0.3).log_prob(c) + dist.Normal(2 * c, 1.0).log_prob(DATA)
        for c in torch.tensor([0.0, 1.0])
    ]
    exact = torch.where(mask, joint[1], torch.stack(joint).logsumexp(0)).sum()
    for cls in LOSSES:
        assert_close(cls().decompose(config_enumerate(partly), nothing).elbo, exact, 10.0)


def test_members_of_a_group_are_named():
    def hmm():
        c = 0
        for t in pyro.markov(range(3)):
            probs = torch.tensor([[0.3, 0.7], [0.6, 0.4]])[c]
            c = pyro.sample(f"c{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(c, 1.0), obs=DATA[t])

    elbo = TraceKL_ELBO()
    terms = elbo.decompose(hmm, lambda: None)
    with pytest.raises(KeyError, match="'x1' has no terms of its own: it is part of 'x0'"):
        _ = terms.sites["x1"]
    with pytest.raises(KeyError, match=r"no site 'q'; the sites are \['x0'\]"):
        _ = terms.sites["q"]
    assert "x0 (c0, c1, c2, +2)" in str(terms)
    plan = elbo.plan(hmm, lambda: None)
    assert plan["x1"] == plan["x0"]
    with pytest.raises(KeyError, match="no site 'q'"):
        _ = plan["q"]


def test_many_scores_are_summed_once():
    """The costs are summed to each set of plates once, whatever the number of scores."""

    def many():
        for i in range(20):
            pyro.sample(f"z{i}", dist.Bernoulli(torch.tensor(0.3)))

    def many_guide():
        for i in range(20):
            pyro.sample(f"z{i}", dist.Bernoulli(pyro.param(f"p{i}", torch.tensor(0.4))))

    grads = []
    for elbo in (TraceGap_ELBO(), Trace_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo.loss_and_grads(many, many_guide)
        store = pyro.get_param_store()._params
        grads.append(torch.stack([store[f"p{i}"].grad for i in range(20)]))
    assert_close(grads[0], grads[1], 100.0)

"""Enumerated sites: exact expectations in the guide, exact marginals in the model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated_programs import (
    DATA,
    PARALLEL,
    PROGRAMS,
    a_guide,
    both_sides,
    hidden_prior,
    locs_guide,
    mixture,
    weights,
    z_guide,
)
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from pyro.poutine.guide import GuideMessenger
from support import LOSSES, assert_close, assert_mean

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, UnsupportedSiteError

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)


def evaluate(elbo, model, guide, seed):
    pyro.clear_param_store()
    elbo.loss(model, guide)
    pyro.set_rng_seed(seed)
    loss = elbo.loss_and_grads(model, guide)
    return loss, {name: p.grad for name, p in pyro.get_param_store()._params.items()}


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_law_1_the_gap_view_is_traceenum_elbo(name, vectorized):
    if name == "hmm" and vectorized:
        pytest.skip("the model indexes with unbatched locations")
    kwargs = {"num_particles": 2, "vectorize_particles": vectorized}
    for seed in range(2):
        loss, grads = evaluate(TraceGap_ELBO(**kwargs), *PROGRAMS[name], seed)
        expected, expected_grads = evaluate(TraceEnum_ELBO(**kwargs), *PROGRAMS[name], seed)
        assert loss == pytest.approx(expected, rel=1e-12)
        for parameter, grad in expected_grads.items():
            assert_close(grads[parameter], grad, abs(loss))


@loss_classes
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "prior and likelihood"])
def test_the_objective_is_made_of_the_terms(cls, name, beta):
    terms = cls(beta=beta, num_particles=2).decompose(*PROGRAMS[name])
    scale = (1 + beta) * (terms.reconstruction.abs() + terms.kl.abs() + terms.entropy.abs())
    assert_close(terms.objective, terms.reconstruction - beta * terms.kl, scale)
    assert_close(terms.reconstruction_kl.elbo, terms.joint_entropy.elbo, scale)


def test_a_group_of_latents_and_data_is_split_by_the_chain_rule():
    model = hidden_prior(mixed=True)
    pyro.set_rng_seed(1)
    terms = TraceGap_ELBO(max_plate_nesting=1).decompose(model, z_guide)
    pyro.set_rng_seed(1)
    z = poutine.trace(z_guide).get_trace().nodes["z"]["value"]
    prior = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).log_prob(z[:, None]) + weights().log()
    likelihood = dist.Normal(z[:, None] + torch.tensor([0.0, 1.0]), 0.7).log_prob(DATA[:, None])
    assert_close(terms.expected_log_prior, prior.logsumexp(-1).sum(), 10.0)
    joint = (prior + likelihood).logsumexp(-1).sum()
    assert_close(terms.reconstruction, joint - prior.logsumexp(-1).sum(), 10.0)


@loss_classes
def test_what_cannot_be_weighted_is_refused(cls):
    model = hidden_prior(mixed=True)
    with pytest.raises(UnsupportedSiteError, match=r"'c'.*\['z'\].*\['x'\].*weigh \['z'\] by 1"):
        cls(beta=4.0).loss(model, z_guide)
    cls(beta={"*": 4.0, "z": 1.0}).loss(model, z_guide)
    with pytest.raises(ValueError, match="beta names site 'c', which the model marginalises"):
        cls(beta={"c": 2.0}).loss(mixture, locs_guide)


@loss_classes
def test_a_sampled_site_below_an_enumerated_one(cls):
    logits = torch.tensor([[0.3, -0.4], [0.5, 0.9]], requires_grad=True)

    def model():
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3)))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        pyro.sample("x", dist.Normal(a + 2 * b, 1.0), obs=torch.tensor(1.5))

    def guide():
        a = pyro.sample("a", dist.Bernoulli(logits=logits[0, 0]), infer=PARALLEL)
        pyro.sample("b", dist.Bernoulli(logits=Vindex(logits)[1, a.long()]))

    exact = torch.zeros(())
    for a in torch.tensor([0.0, 1.0]):
        for b in torch.tensor([0.0, 1.0]):
            log_q = dist.Bernoulli(logits=logits[0, 0]).log_prob(a)
            log_q = log_q + dist.Bernoulli(logits=logits[1, a.long()]).log_prob(b)
            log_p = dist.Bernoulli(torch.tensor(0.3)).log_prob(a)
            log_p = log_p + dist.Bernoulli(0.2 + 0.5 * a).log_prob(b)
            log_x = dist.Normal(a + 2 * b, 1.0).log_prob(torch.tensor(1.5))
            exact = exact + log_q.exp() * (log_x + 4 * (log_p - log_q))
    (expected,) = torch.autograd.grad(exact, logits)
    elbo = cls(beta=4.0, num_particles=50, vectorize_particles=True)
    values, grads = [], []
    for _ in range(100):
        loss = elbo.differentiable_loss(model, guide)
        values.append(-loss.detach())
        grads.append(-torch.autograd.grad(loss, logits)[0])
    assert_mean(torch.stack(values), exact.detach())
    assert_mean(torch.stack(grads), expected)


@loss_classes
def test_local_samples_of_a_guide_site(cls):
    """Several samples of one site, in parallel: infer={"num_samples": ...}."""
    loc = torch.tensor(0.4, requires_grad=True)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))

    def guide():
        infer = {"enumerate": "parallel", "num_samples": 50}
        pyro.sample("z", dist.Normal(loc, 0.5), infer=infer)

    exact = dist.Normal(loc, 1.0).log_prob(torch.tensor(2.0)) - 0.125 - 0.5 * loc**2
    (expected,) = torch.autograd.grad(exact, loc)
    grads = []
    for _ in range(100):
        grads.append(-torch.autograd.grad(cls().differentiable_loss(model, guide), loc)[0])
    assert_mean(torch.stack(grads), expected)


def outside_cost():
    with pyro.plate("data", 4):
        a = pyro.sample("a", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(a.sum(-1, keepdim=True), 1.0), obs=torch.tensor(1.0))


def different_scales():
    c = pyro.sample("c", dist.Categorical(weights()), infer=PARALLEL)
    with poutine.scale(scale=3.0):
        pyro.sample("x", dist.Normal(c * 1.0, 1.0), obs=torch.tensor(1.0))


def sampled_marginal():
    infer = {"enumerate": "parallel", "num_samples": 5}
    c = pyro.sample("c", dist.Categorical(weights()), infer=infer)
    pyro.sample("x", dist.Normal(c * 1.0, 1.0), obs=torch.tensor(1.0))


def sequential():
    pyro.sample("c", dist.Categorical(weights()), infer={"enumerate": "sequential"})


def empty():
    pass


class PriorMessenger(GuideMessenger):
    def get_posterior(self, name, prior):
        return prior


@loss_classes
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (outside_cost, a_guide(PARALLEL), "'x'.*enumerated site 'a'.*plates of 'a'"),
        (different_scales, empty, "'c'.*share a common poutine.scale"),
        (sampled_marginal, empty, "'c'.*num_samples"),
        (sequential, empty, "'c'.*sequential"),
    ],
    ids=["plate", "scales", "samples", "sequential"],
)
def test_what_cannot_be_enumerated_is_refused(cls, model, guide, message):
    with pytest.raises(UnsupportedSiteError, match=message):
        cls().loss(model, guide)


def test_a_messenger_guide_cannot_enumerate():
    with pytest.raises(UnsupportedSiteError, match="'c'.*messenger"):
        TraceKL_ELBO().loss(both_sides, PriorMessenger(both_sides))


@loss_classes
def test_an_autoguide_over_the_continuous_sites(cls):
    pyro.set_rng_seed(0)
    guide = AutoNormal(poutine.block(mixture, hide=["c"]))
    cls().loss(mixture, guide)
    values = []
    for elbo in (cls(), TraceEnum_ELBO()):
        pyro.set_rng_seed(2)
        values.append(torch.stack([torch.tensor(elbo.loss(mixture, guide)) for _ in range(300)]))
    assert_mean(values[0] - values[1], torch.zeros(()))


@loss_classes
def test_the_nesting_may_be_given_or_found(cls):
    for kwargs in ({}, {"max_plate_nesting": 1}, {"max_plate_nesting": 3}):
        elbo = cls(**kwargs)
        for _ in range(2):
            assert elbo.decompose(both_sides, a_guide(PARALLEL)).sites["a"].gradient == "enumerated"
        assert elbo.decompose(both_sides, a_guide({})).sites["a"].gradient == "score function"


def masked_by_an_enumerated_site(parent):
    """A mixture of normals by hand: of three likelihoods the mask picks one."""

    def model():
        locs = pyro.param("locs", torch.tensor([0.0, 1.0, 10.0]))
        with pyro.plate("data", 4, dim=-2):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=parent)
            components = pyro.plate("components", 3, dim=-1)
            with components as component, poutine.mask(mask=c == component):
                pyro.sample("x", dist.Normal(locs, 1.3), obs=DATA[:, None])

    return model


@loss_classes
def test_a_mask_may_depend_on_an_enumerated_site(cls):
    locs, prior = torch.tensor([0.0, 1.0, 10.0]), torch.tensor([0.2, 0.3, 0.5])
    components = dist.Normal(locs, 1.3).log_prob(DATA[:, None]) + prior.log()
    terms = cls().decompose(masked_by_an_enumerated_site(PARALLEL), empty)
    assert_close(terms.elbo, components.logsumexp(-1).sum(), 100.0)

    def guide():
        with pyro.plate("data", 4, dim=-2):
            pyro.sample("c", dist.Categorical(torch.tensor([0.6, 0.3, 0.1])), infer=PARALLEL)

    q = torch.tensor([0.6, 0.3, 0.1])
    terms = cls().decompose(masked_by_an_enumerated_site({}), guide)
    assert_close(terms.elbo, (q * (components - q.log())).sum(), 100.0)

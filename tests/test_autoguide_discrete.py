"""AutoGuides beside discrete sites: summed in the guide, summed in the model, or sampled."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from auto_guides import (
    GUIDES,
    assert_same,
    assert_same_mean,
    evaluate,
    listed,
    make,
    of_samples,
    with_discrete,
)
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoDiscreteParallel, AutoStructured
from pyro.nn import PyroModule
from support import LOSSES, assert_close, assert_mean
from torch import nn

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
particles = pytest.mark.parametrize("vectorize", [False, True], ids=["sequential", "vectorised"])
DATA = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)


def test_a_score_function_part_beside_a_joint_one():
    """Its mean gradient is that of the enumerated part."""

    class Coin(PyroModule):
        def __init__(self):
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(0.2))

        def forward(self):
            pyro.sample("c", dist.Bernoulli(logits=self.logit))

    def model():
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Bernoulli(0.3))
        with pyro.plate("data", 3):
            pyro.sample("x", dist.Normal(m + 2 * c, 1.0), obs=DATA)

    coin = Coin()
    for cls, continuous in itertools.product(LOSSES, (AutoDiagonalNormal, AutoStructured)):
        kwargs = {"num_particles": 20, "vectorize_particles": True, "max_plate_nesting": 1}
        kwargs |= {"beta": 0.5}
        rows = []
        for part in (coin, config_enumerate(coin)):
            guide = make(listed((continuous, ["m"]), part), model, step=0.0)
            elbo, gradients = cls(**kwargs), []
            for _ in range(60):
                coin.zero_grad()
                elbo.loss_and_grads(model, guide)
                gradients.append(coin.logit.grad.clone())
            rows.append(torch.stack(gradients))
        sampled, enumerated = rows
        assert_mean(sampled - enumerated, torch.zeros(()))


def discrete_model():
    b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        h = pyro.sample("h", dist.OneHotCategorical(torch.tensor([0.6, 0.4])))
        loc = (h * torch.tensor([1.0, -1.0])).sum(-1)
        pyro.sample("x", dist.Normal(b + c + loc, 1.0), obs=DATA)


def discrete_objective(guide, beta):
    """The objective summed by hand over all values."""
    b_probs = torch.stack([1 - guide.b_probs, guide.b_probs])
    b, c, h = torch.arange(2.0), torch.arange(3.0), torch.tensor([1.0, -1.0])
    loc = b[:, None, None, None] + c[:, None] + h
    likelihood = dist.Normal(loc, 1.0).log_prob(DATA[:, None, None])
    weights = b_probs[:, None, None, None] * guide.c_probs[:, :, None] * guide.h_probs[:, None]
    kl = (b_probs * (b_probs / torch.tensor([0.7, 0.3])).log()).sum()
    for q, p in ((guide.c_probs, [0.2, 0.5, 0.3]), (guide.h_probs, [0.6, 0.4])):
        kl = kl + (q * (q / torch.tensor(p)).log()).sum()
    return (weights * likelihood).sum() - beta * kl


@loss_classes
@particles
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_discrete_parts_are_summed_exactly(cls, vectorize, beta):
    guide = make(AutoDiscreteParallel, discrete_model, step=1.0)
    kwargs = {"num_particles": 2, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    elbo = cls(beta=beta, **kwargs)
    ours = evaluate(elbo, discrete_model, guide, 1)
    loss = -discrete_objective(guide, beta)
    grads = torch.autograd.grad(loss, list(guide.parameters()))
    exact = torch.cat([loss.detach()[None], *(grad.flatten() for grad in grads)])
    assert_same(ours, exact)
    assert {site.how["kl"] for site in elbo.terms.sites.values() if site.beta is not None} == {
        "enumerated"
    }


def mixture():
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Categorical(w))
        z = pyro.sample("z", dist.Normal(m + c, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=DATA)


PARTS = ["AutoNormal", "AutoMultivariateNormal", "AutoStructured of mvn", "AutoDelta"]
CONTINUOUS = ["m", "w", "z"]


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("side", ["guide", "model"])
@of_samples
def test_enumeration_beside_continuous_parts(name, side, vectorize):
    """In the guide by AutoDiscreteParallel, in the model where the guide lacks the site."""
    build, model = with_discrete(GUIDES[name], *CONTINUOUS), mixture
    if side == "model":
        build = lambda model: GUIDES[name](poutine.block(model, hide=["c"]))  # noqa: E731
        model = config_enumerate(mixture)
    guide = make(build, model)
    kwargs = {"num_particles": 2, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    pyros = TraceEnum_ELBO(strict_enumeration_warning=False, **kwargs)
    assert_same(
        evaluate(TraceGap_ELBO(**kwargs), model, guide, 1), evaluate(pyros, model, guide, 1)
    )
    losses = [cls(beta=4.0, **kwargs) for cls in (TraceKL_ELBO, TraceGap_ELBO)]
    assert_same_mean(losses, model, guide, count=20)


@loss_classes
def test_obs_mask_on_a_discrete_part(cls):
    """Only what is not observed is summed over its values, and has a KL."""
    observed = torch.tensor([True, False, True])
    labels = torch.tensor([1.0, 0.0, 0.0])

    def model():
        with pyro.plate("data", 3):
            b = pyro.sample("b", dist.Bernoulli(0.3), obs=labels, obs_mask=observed)
            pyro.sample("x", dist.Normal(b, 0.5), obs=DATA)

    guide = make(AutoDiscreteParallel, model, step=1.0)
    q = guide.b_unobserved_probs[1]
    q = torch.stack([1 - q, q])
    prior = torch.tensor([0.7, 0.3])
    summed = (q * dist.Normal(torch.arange(2.0), 0.5).log_prob(DATA[1])).sum()
    seen = dist.Normal(labels, 0.5).log_prob(DATA) + dist.Bernoulli(0.3).log_prob(labels)
    kl = (q * (q / prior).log()).sum()
    terms = cls(beta=4.0, max_plate_nesting=1).decompose(model, guide)
    assert_close(terms.objective, seen[observed].sum() + summed - 4 * kl, ulps=1024)
    assert_close(terms.sites["b_unobserved"].kl, torch.stack([0 * kl, kl, 0 * kl]), kl, ulps=1024)

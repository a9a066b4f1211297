"""The dims of enumerated sites: where Pyro lets two sites share one, and what may not be summed."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from support import LOSSES, assert_close

from pyro_elbo import UnsupportedSiteError

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
PARALLEL = {"enumerate": "parallel"}
PROBS = [0.2, 0.5, 0.9]


def coin(name, prob, **infer):
    return pyro.sample(name, dist.Bernoulli(torch.as_tensor(prob)), infer=infer)


def coins(history=1, steps=3, **infer):
    return [coin(f"c_{t}", PROBS[t], **infer) for t in pyro.markov(range(steps), history=history)]


@loss_classes
def test_a_factor_that_looks_back_in_a_markov_chain(cls):
    def model():
        previous = torch.zeros(())
        for t in pyro.markov(range(3)):
            pyro.factor(f"f_{t}", 2 * previous)
            previous = coin(f"c_{t}", PROBS[t])

    loss = cls().loss(model, lambda: coins(**PARALLEL))
    assert_close(torch.tensor(-loss), torch.tensor(2 * (0.2 + 0.5)), 10.0)


@loss_classes
def test_a_factor_of_two_neighbours_in_a_markov_chain(cls):
    def model():
        previous = torch.zeros(())
        for t in pyro.markov(range(3)):
            value = coin(f"c_{t}", PROBS[t])
            pyro.factor(f"f_{t}", 2 * previous * value)
            previous = value

    loss = cls().loss(model, lambda: coins(**PARALLEL))
    assert_close(torch.tensor(-loss), torch.tensor(2 * (0.2 * 0.5 + 0.5 * 0.9)), 10.0)


@loss_classes
@pytest.mark.parametrize("values", [2, 3])
def test_a_site_enumerated_after_a_markov_chain(cls, values):
    probs = torch.ones(values)

    def model():
        b = pyro.sample("b", dist.Categorical(probs))
        for t in pyro.markov(range(2)):
            pyro.factor(f"f_{t}", coin(f"c_{t}", PROBS[t]) * b)

    def guide():
        coins(steps=2, **PARALLEL)
        pyro.sample("b", dist.Categorical(probs), infer=PARALLEL)

    exact = (0.2 + 0.5) * (values - 1) / 2
    assert_close(torch.tensor(-cls().loss(model, guide)), torch.tensor(exact), 10.0)


@loss_classes
def test_a_summed_and_an_enumerated_site_in_a_markov_chain(cls):
    def model():
        for t in pyro.markov(range(2)):
            summed = coin(f"s_{t}", 0.5, **PARALLEL)
            pyro.factor(f"f_{t}", 2 * summed * coin(f"c_{t}", PROBS[t]))

    loss = cls().loss(model, lambda: coins(steps=2, **PARALLEL))
    exact = (0.2 + 0.5) * math.log(0.5 + 0.5 * math.exp(2))
    assert_close(torch.tensor(-loss), torch.tensor(exact), 10.0)


@loss_classes
def test_a_model_that_looks_further_back_than_the_guide(cls):
    """Exact as long as the dim of the first site has not been recycled, refused from then on."""

    def chain(steps, history=1):
        times = pyro.markov(range(steps), history=history)
        return [coin(f"c_{t}", PROBS[t % 3], **PARALLEL) for t in times]

    def model(steps, in_scope=True):
        values = []
        for t in pyro.markov(range(steps), history=steps):
            values.append(coin(f"c_{t}", PROBS[t % 3]))
            if in_scope and t == steps - 1:
                pyro.factor("f", 2 * values[0] * (1 - values[-1]))
        if not in_scope:
            pyro.factor("f", 2 * values[0] * (1 - values[-1]))

    exact = torch.tensor(2 * 0.2 * 0.1)
    loss = cls().loss(model, chain, 3)
    assert_close(torch.tensor(-loss), exact, 10.0)
    with pytest.raises(UnsupportedSiteError, match="site 'f'.*history="):
        cls().loss(model, chain, 9)
    loss = cls().loss(model, lambda steps: chain(steps, history=9), 9)
    assert_close(torch.tensor(-loss), exact, 10.0)
    with pytest.raises(ValueError, match="site 'f'"):
        cls().loss(lambda steps: model(steps, in_scope=False), chain, 3)


@loss_classes
@pytest.mark.parametrize("history", [0, 1, 2])
def test_a_chain_needs_its_history(cls, history):
    probs = torch.tensor([[0.1, 0.4], [0.7, 0.9]])

    def model():
        before = last = torch.tensor(0)
        for t in pyro.markov(range(12), history=history):
            before, last = last, coin(f"c_{t}", probs[before, last], **PARALLEL).long()
            pyro.factor(f"f_{t}", 0.3 * last)

    joint = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    for _ in range(12):
        now = torch.stack([1 - probs, probs], -1).log() + torch.tensor([0.0, 0.3])
        joint = (joint[..., None] + now).logsumexp(0)
    if history == 2:
        loss = cls().loss(model, lambda: None)
        assert_close(torch.tensor(-loss), joint.logsumexp((0, 1)), 10.0)
    else:
        with pytest.raises(ValueError, match=f"conflict at site 'c_{history + 1}'.*history="):
            cls().loss(model, lambda: None)


@loss_classes
@pytest.mark.parametrize("back", range(2, 9))
def test_no_site_may_reach_back_beyond_its_history(cls, back):
    """Not even to the one whose dim it has; from nine sites back on it cannot be told."""

    def model():
        values = []
        for t in pyro.markov(range(12)):
            prob = 0.2 + 0.6 * values[t - back] if t >= back else 0.3
            values.append(coin(f"c_{t}", prob, **PARALLEL))

    with pytest.raises((ValueError, UnsupportedSiteError), match=f"'c_{back}'.*history="):
        cls().loss(model, lambda: None)


@loss_classes
def test_hidden_sites_in_a_markov_chain(cls):
    def model():
        for t in pyro.markov(range(3)):
            pyro.factor(f"f_{t}", 0.5 * coin(f"c_{t}", PROBS[t], **PARALLEL))

    hidden = poutine.block(model, hide_fn=lambda msg: msg["name"].startswith("f_"))
    losses = [cls(max_plate_nesting=0).loss(program, lambda: None) for program in (model, hidden)]
    exact = sum(math.log(1 - p + p * math.exp(0.5)) for p in PROBS)
    assert_close(torch.tensor(-losses[0]), torch.tensor(exact), 10.0)
    assert_close(torch.tensor(losses[1]), torch.tensor(0.0), 10.0)


@loss_classes
@pytest.mark.parametrize("size", [2, 3])
def test_a_grid(cls, size):
    """TraceEnum_ELBO gives a neighbour's dim to another site, and a wrong number."""
    probs, cells = torch.tensor([[0.1, 0.4], [0.7, 0.9]]), range(size)

    def log_prob(x, i, j):
        p = probs[x.get((i - 1, j), 0), x.get((i, j - 1), 0)]
        return (p if x[i, j] else 1 - p).log() + 0.3 * (i + j) * x[i, j]

    def model():
        x, columns = defaultdict(lambda: torch.tensor(0)), pyro.markov(cells, keep=True)
        for i in pyro.markov(cells):
            for j in columns:
                p = probs[x[i - 1, j], x[i, j - 1]]
                x[i, j] = coin(f"x_{i}_{j}", p, **PARALLEL).long()
                pyro.factor(f"f_{i}_{j}", 0.3 * (i + j) * x[i, j])

    places = list(itertools.product(cells, cells))
    grids = (dict(zip(places, x, strict=True)) for x in itertools.product((0, 1), repeat=size**2))
    exact = torch.stack([sum(log_prob(x, *place) for place in places) for x in grids])
    loss = cls().loss(model, lambda: None)
    assert_close(torch.tensor(-loss), exact.logsumexp(0), 10.0)


@loss_classes
def test_an_enumerated_site_below_its_guide_child_in_the_model(cls):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Bernoulli(logits=z))

    def guide():
        c = coin("c", 0.4, **PARALLEL)
        pyro.sample("z", dist.Delta(c).mask(False))

    def cost(c):
        prior = dist.Normal(0.0, 1.0).log_prob(c) + dist.Bernoulli(logits=c).log_prob(c)
        return prior - dist.Bernoulli(torch.tensor(0.4)).log_prob(c)

    exact = 0.6 * cost(torch.tensor(0.0)) + 0.4 * cost(torch.tensor(1.0))
    assert_close(torch.tensor(-cls().loss(model, guide)), exact, 10.0)


@loss_classes
@pytest.mark.parametrize("how", ["parallel", "sequential"])
def test_a_sum_over_entries_that_are_enumerated_at_once_is_refused(cls, how):
    def model():
        s = coin("s", 0.3, **PARALLEL)
        with pyro.plate("data", 2):
            coin("c", 0.2 + 0.6 * s)

    def guide():
        with pyro.plate("data", 2):
            coin("c", 0.4, enumerate=how)

    with pytest.raises(UnsupportedSiteError):
        cls().loss(model, guide)


@loss_classes
def test_the_terms_of_a_sum_over_latents_and_data_with_vectorised_particles(cls):
    def model():
        with pyro.plate("rows", 2, dim=-2):
            s = coin("s", 0.3, **PARALLEL)
            with pyro.plate("columns", 3, dim=-1), poutine.scale(scale=1.0):
                pyro.factor("f", s * torch.ones(3))
            pyro.sample("z", dist.Normal(s, 1.0))

    def guide():
        with pyro.plate("rows", 2, dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(2, 1), 1.0))

    elbo = cls(num_particles=4, vectorize_particles=True)
    loss = elbo.loss(model, guide)
    terms = elbo.terms
    assert_close(terms.reconstruction - terms.kl, torch.tensor(-loss), 10.0)
    assert_close(terms.per_datum("rows").elbo.sum(), terms.elbo, 10.0)

"""Law 12, and that the path derivative keeps value and mean."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.nn import PyroModule, PyroParam
from support import PARTICLES, SEQUENTIAL_IS_SLOW, assert_close, assert_mean, evaluate

from pyro_elbo import TraceGap_ELBO, UnsupportedSiteError
from pyro_elbo.reference import BetaBernoulli, ConjugateNormal, HierarchicalNormal, LinearVAE

problems = pytest.mark.parametrize(
    "problem_class",
    [ConjugateNormal, LinearVAE, BetaBernoulli, HierarchicalNormal],
    ids=lambda cls: cls.__name__,
)
particle_modes = pytest.mark.parametrize("particles", PARTICLES.values(), ids=PARTICLES.keys())


@problems
@particle_modes
def test_law_12_at_the_posterior_every_samples_gradient_is_zero(problem_class, particles):
    problem = problem_class()
    if problem_class is LinearVAE:
        problem.fit_maximum_likelihood()
    problem.set_guide_to_posterior()
    largest = float(problem.exact_terms().reconstruction.detach().abs())
    for seed in range(3):
        _, plain = evaluate(TraceGap_ELBO(**particles), problem, seed)
        _, grads = evaluate(TraceGap_ELBO(path_derivative=True, **particles), problem, seed)
        for name, grad in grads.items():
            if name.startswith("guide."):
                scale = largest + plain[name].abs().max()
                assert_close(grad, torch.zeros_like(grad), scale, ulps=4096)


@problems
@particle_modes
def test_the_value_is_the_same(problem_class, particles):
    problem = problem_class()
    for seed in range(3):
        loss, plain = evaluate(TraceGap_ELBO(beta=4.0, **particles), problem, seed)
        elbo = TraceGap_ELBO(beta=4.0, path_derivative=True, **particles)
        path_loss, grads = evaluate(elbo, problem, seed)
        assert path_loss == pytest.approx(loss, rel=1e-14)
        for name, grad in plain.items():
            if name.startswith("model."):
                assert_close(grads[name], grad, grad.abs().max())


@problems
@SEQUENTIAL_IS_SLOW
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_mean_is_the_gradient(problem_class, particles, beta):
    problem = problem_class()
    elbo = TraceGap_ELBO(beta=beta, path_derivative=True, **particles)
    exact = problem.exact_gradients(beta)
    pyro.set_rng_seed(1)
    rows = [evaluate(elbo, problem)[1] for _ in range(200)]
    for name, gradient in exact.items():
        assert_mean(torch.stack([row[name] for row in rows]), -gradient.detach(), name)


class Dependent(PyroModule):
    """Two dependent sites that hold the posterior of a pair of correlated normals."""

    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(0.0))
        self.slope = PyroParam(torch.tensor(0.5))
        self.scale = PyroParam(torch.tensor([math.sqrt(2.0), math.sqrt(0.5)]))

    def forward(self):
        b = pyro.sample("b", dist.Normal(self.loc, self.scale[0]))
        pyro.sample("a", dist.Normal(self.slope * b, self.scale[1]))


def chain():
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("b", dist.Normal(a, 1.0))


def test_law_12_with_several_dependent_sites():
    guide = Dependent()
    for seed in range(5):
        pyro.set_rng_seed(seed)
        TraceGap_ELBO(path_derivative=True).loss_and_grads(chain, guide)
        for parameter in guide.parameters():
            assert_close(parameter.grad, torch.zeros_like(parameter), 1.0)
            parameter.grad = None
    TraceGap_ELBO().loss_and_grads(chain, guide)
    assert all(parameter.grad.any() for parameter in guide.parameters())


class Dropping(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor([0.3, -0.2, 0.5]))

    def forward(self):
        a = pyro.sample("a", dist.Normal(torch.dropout(self.loc, 0.5, True).sum(), 1.0))
        pyro.sample("b", dist.Normal(a * torch.dropout(self.loc, 0.5, True).sum(), 1.0))


def test_both_runs_see_the_same_noise():
    guide, elbo = Dropping(), TraceGap_ELBO(path_derivative=True)
    for seed in range(5):
        losses = []
        for loss in (elbo, TraceGap_ELBO()):
            pyro.set_rng_seed(seed)
            losses.append(loss.differentiable_loss(chain, guide).item())
        assert losses[0] == losses[1]


def constrained():
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 3):
        p = pyro.sample("p", dist.Beta(2.0, 1.0 + rate))
        pyro.sample("x", dist.Bernoulli(p), obs=torch.tensor([0.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    "guide_class",
    [
        AutoNormal,
        AutoDiagonalNormal,
        AutoMultivariateNormal,
        AutoIAFNormal,
        AutoStructured,
        AutoDelta,
        AutoNormalMessenger,
    ],
    ids=lambda cls: cls.__name__,
)
def test_autoguides_keep_value_and_mean(guide_class):
    pyro.set_rng_seed(0)
    guide = guide_class(constrained)
    guide()
    rows = {}
    for path_derivative in (False, True):
        elbo = TraceGap_ELBO(path_derivative=path_derivative)
        pyro.set_rng_seed(1)
        gradients = []
        for _ in range(150):
            for parameter in guide.parameters():
                parameter.grad = None
            elbo.loss_and_grads(constrained, guide)
            gradients.append(torch.cat([p.grad.flatten() for p in guide.parameters()]))
        rows[path_derivative] = torch.stack(gradients)
    assert_mean(rows[True] - rows[False], torch.zeros_like(rows[True][0]))


def test_what_is_refused():
    def coin():
        pyro.sample("c", dist.Bernoulli(torch.tensor(0.4)))

    def factored():
        pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", torch.tensor(0.1), has_rsample=True)

    enumerated = poutine.infer_config(coin, lambda site: {"enumerate": "parallel"})
    elbo = TraceGap_ELBO(path_derivative=True)
    for evaluation in (elbo.loss, elbo.loss_and_grads):
        with pytest.raises(UnsupportedSiteError, match="'c'.*reparameterised"):
            evaluation(coin, coin)
        with pytest.raises(UnsupportedSiteError, match="'c'.*path_derivative"):
            evaluation(coin, enumerated)
        with pytest.raises(UnsupportedSiteError, match="'f'.*factor"):
            evaluation(chain, factored)


def test_the_plan_says_so():
    plan = TraceGap_ELBO(path_derivative=True).plan(chain, Dependent())
    assert plan["a"].gradient == plan["b"].gradient == "path derivative"

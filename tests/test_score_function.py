"""Sites without reparameterisation: the score function, its closed forms and its baselines."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.testing.rejection_gamma import ShapeAugmentedGamma
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from support import LOSSES, ForcedGuide, assert_close, assert_mean
from torch.distributions import kl_divergence

from pyro_elbo import TraceGap_ELBO, UnsupportedSiteError

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
betas = pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
DATA = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)


def parameters():
    return {
        "a": torch.tensor(0.4, requires_grad=True),
        "b": torch.tensor([-0.3, 0.8], requires_grad=True),
        "prior": torch.tensor([0.1, -0.6], requires_grad=True),
    }


class Coins(ForcedGuide):
    """A coin, and below it a coin for each datum, both sampled, on model and guide."""

    def __init__(self):
        self.parameters = parameters()

    def model(self):
        a = pyro.sample("a", dist.Bernoulli(logits=self.parameters["prior"][0]))
        with pyro.plate("data", 3):
            b = pyro.sample("b", dist.Bernoulli(logits=self.parameters["prior"][1] * a))
            pyro.sample("x", dist.Normal(a + 2 * b, 0.8), obs=DATA)

    def _guide(self):
        a = pyro.sample("a", dist.Bernoulli(logits=self.parameters["a"]))
        with pyro.plate("data", 3):
            pyro.sample("b", dist.Bernoulli(logits=self.parameters["b"][a.long()] * DATA))

    def outcomes(self):
        """Force every joint outcome in turn, and yield its probability."""
        for bits in itertools.product([0.0, 1.0], repeat=4):
            values = {"a": torch.tensor(bits[0]), "b": torch.tensor(bits[1:])}
            self.forced = poutine.trace(poutine.condition(self._guide, values)).get_trace()
            log_prob = self.forced.log_prob_sum().detach()
            for name in values:
                self.forced.nodes[name]["is_observed"] = False
            yield log_prob.exp()
        self.forced = None

    def exact(self, beta):
        total = 0.0
        for bits in itertools.product([0.0, 1.0], repeat=4):
            values = {"a": torch.tensor(bits[0]), "b": torch.tensor(bits[1:])}
            model = poutine.trace(poutine.condition(self.model, values)).get_trace()
            guide = poutine.trace(poutine.condition(self._guide, values)).get_trace()
            model.compute_log_prob()
            log_q = guide.log_prob_sum()
            log_p = model.nodes["a"]["log_prob_sum"] + model.nodes["b"]["log_prob_sum"]
            log_ratio = model.nodes["x"]["log_prob_sum"] + beta * (log_p - log_q)
            total = total + log_q.exp() * log_ratio
        return total


def gradients_of(loss, parameters):
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(parameters.items(), grads, strict=True)
    }


@betas
@loss_classes
def test_the_estimators_expectation_is_the_gradient(cls, beta):
    coins = Coins()
    exact = coins.exact(beta)
    expected = gradients_of(exact, coins.parameters)
    value = torch.zeros(())
    mean = {name: torch.zeros_like(p) for name, p in coins.parameters.items()}
    for probability in coins.outcomes():
        loss = cls(beta=beta).differentiable_loss(coins.model, coins.guide)
        value = value - probability * loss.detach()
        for name, grad in gradients_of(loss, coins.parameters).items():
            mean[name] = mean[name] - probability * grad
    assert_close(value, exact.detach(), 10.0)
    for name, grad in expected.items():
        assert_close(mean[name], grad, 10.0)
        assert grad.any() or (name == "prior" and beta == 0)


@loss_classes
def test_partly_reparameterised_samplers(cls):
    concentration = torch.tensor(2.0, requires_grad=True)

    def model():
        pyro.sample("z", dist.Gamma(torch.tensor(3.0), 1.0))

    def guide():
        pyro.sample("z", ShapeAugmentedGamma(concentration, torch.tensor(1.0)))

    elbo = cls(num_particles=100, vectorize_particles=True)
    grads = []
    for _ in range(100):
        loss = elbo.differentiable_loss(model, guide)
        grads.append(-torch.autograd.grad(loss, concentration)[0])
    kl = kl_divergence(dist.Gamma(concentration, 1.0), dist.Gamma(torch.tensor(3.0), 1.0))
    assert_mean(torch.stack(grads), -torch.autograd.grad(kl, concentration)[0])


@loss_classes
@pytest.mark.parametrize(
    "options",
    [{"use_decaying_avg_baseline": True}, {"baseline_value": 1}, {"nn_baseline": 1}],
    ids=lambda options: next(iter(options)),
)
def test_baselines_leave_the_gradient_and_are_trained(cls, options):
    coins = Coins()
    predictor = torch.tensor([0.5, -1.0, 0.2], requires_grad=True)
    if "baseline_value" in options:
        options = {"baseline_value": predictor}
    if "nn_baseline" in options:
        options = {"nn_baseline": lambda x: predictor * x, "nn_baseline_input": DATA}
    infer = {"b": {"baseline": options}}
    guide = poutine.infer_config(coins.guide, lambda site: infer.get(site["name"], {}))
    expected = gradients_of(coins.exact(4.0), coins.parameters)
    mean = {name: torch.zeros_like(p) for name, p in coins.parameters.items()}
    trained = torch.zeros(())
    for probability in coins.outcomes():
        pyro.clear_param_store()
        pyro.get_param_store()["__baseline_avg_downstream_cost_b"] = -3.0 * DATA
        loss = cls(beta=4.0).differentiable_loss(coins.model, guide)
        grads = gradients_of(loss, {**coins.parameters, "baseline": predictor})
        trained = trained + grads.pop("baseline").abs().sum()
        for name, grad in grads.items():
            mean[name] = mean[name] - probability * grad
    for name, grad in expected.items():
        assert_close(mean[name], grad, 20.0)
    assert bool(trained) == ("use_decaying_avg_baseline" not in options)


def coin_guide(**baseline):
    def guide():
        pyro.sample(
            "a",
            dist.Bernoulli(pyro.param("q", torch.tensor(0.4))),
            infer={"baseline": baseline},
        )

    return guide


def coin_model():
    a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3)))
    pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(2.0))


def test_the_decaying_average_is_that_of_tracegraph():
    averages, grads = [], []
    for cls in (TraceGap_ELBO, TraceGraph_ELBO):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        elbo = cls()
        guide = coin_guide(use_decaying_avg_baseline=True, baseline_beta=0.8)
        for _ in range(5):
            elbo.loss_and_grads(coin_model, guide)
        store = pyro.get_param_store()
        averages.append(store["__baseline_avg_downstream_cost_a"].detach())
        grads.append(store._params["q"].grad)
    assert_close(averages[0], averages[1])
    assert_close(grads[0], grads[1], 10.0)


def test_a_value_alone_neither_moves_nor_reads_the_average():
    guide = coin_guide(use_decaying_avg_baseline=True)
    TraceGap_ELBO().loss(coin_model, guide)
    TraceGap_ELBO().decompose(coin_model, guide)
    assert list(pyro.get_param_store().keys()) == ["q"]


def test_a_baseline_lowers_the_variance():
    variances = []
    for baseline in ({}, {"use_decaying_avg_baseline": True}):
        pyro.clear_param_store()
        grads = []
        for _ in range(400):
            loss = TraceGap_ELBO().differentiable_loss(coin_model, coin_guide(**baseline))
            q = pyro.get_param_store()._params["q"]
            grads.append(torch.autograd.grad(loss, q)[0])
        variances.append(torch.stack(grads[50:]).var())
    assert variances[1] < variances[0]


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"use_decaying_average": True}, "site 'a': unknown baseline options.*use_decaying_avg"),
        ({"nn_baseline": torch.nn.Linear(1, 1), "baseline_value": torch.ones(())}, "exclude each"),
        ({"baseline_value": torch.ones(3)}, r"site 'a': the baseline has shape \(3,\)"),
    ],
)
def test_bad_baselines_are_refused(baseline, message):
    with pytest.raises(ValueError, match=message):
        TraceGap_ELBO().loss_and_grads(coin_model, coin_guide(**baseline))


@loss_classes
def test_an_objective_of_its_own_is_refused(cls):
    class FreeBits(cls):
        def objective(self, reconstruction, kl_by_site):
            return reconstruction - sum(kl.clamp(min=0.1) for kl in kl_by_site.values())

    assert math.isfinite(FreeBits().loss(coin_model, coin_guide()))
    with pytest.raises(UnsupportedSiteError, match="site 'a'.*objective of its own"):
        FreeBits().loss_and_grads(coin_model, coin_guide())


@loss_classes
def test_law_1_with_a_parent_and_a_reparameterised_child(cls):
    logit, loc = torch.tensor(0.4, requires_grad=True), torch.tensor(0.2, requires_grad=True)

    def model():
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3)))
        with pyro.plate("data", 3, subsample_size=2) as indices:
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[indices])

    def guide():
        a = pyro.sample("a", dist.Bernoulli(logits=logit))
        with pyro.plate("data", 3, subsample_size=2):
            pyro.sample("z", dist.Normal(loc + a, 0.5))

    results = []
    for elbo in (TraceGap_ELBO(), Trace_ELBO()):
        pyro.set_rng_seed(3)
        loss = elbo.differentiable_loss(model, guide)
        results.append([loss.detach(), *torch.autograd.grad(loss, [logit, loc])])
    for ours, pyros in zip(*results, strict=True):
        assert_close(ours, pyros, 10.0)
    assert cls().plan(model, guide)["z"].gradient == "pathwise"

"""What an evaluation leaves behind: terms, plans, prints, the state of a module."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from support import assert_close

from pyro_elbo import (
    TraceEntropy_ELBO,
    TraceGap_ELBO,
    TraceKL_ELBO,
    schedules,
)

KL = math.log(2) + (0.25 + 1) / 2 - 0.5


def model():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))


def guide():
    with pyro.plate("data", 5):
        pyro.sample("z", dist.Normal(torch.ones(()), 0.5))


def test_deterministic_sites_are_no_part_of_the_bound():
    def with_deterministic():
        pyro.deterministic("k", torch.tensor(1.0))
        with pyro.plate("data", 5, subsample_size=2):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.deterministic("twice", 2 * z)

    def local():
        with pyro.plate("data", 5, subsample_size=2):
            z = pyro.sample("z", dist.Normal(torch.ones(()), 0.5))
            pyro.deterministic("thrice", 3 * z)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        terms = TraceKL_ELBO(num_particles=2, vectorize_particles=True).decompose(
            with_deterministic, local
        )
    assert list(terms.sites) == ["z"]
    assert not terms.importance_bound.isnan()


def test_indices_are_a_record():
    chosen = torch.tensor([3, 1])

    def subset(scale):
        def program():
            with pyro.plate("data", 5, subsample=chosen):
                pyro.sample("z", dist.Normal(torch.zeros(()), scale))

        return program

    data = TraceKL_ELBO(num_particles=2).decompose(subset(1.0), subset(0.5)).per_datum("data")
    chosen[0] = 0
    assert data.indices.tolist() == [3, 1]
    orders = iter([torch.tensor([0, 1]), torch.tensor([1, 0])] * 2)

    def shuffled(order):
        with pyro.plate("data", 2, subsample=order):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    class Shuffled:
        def __call__(self):
            self.order = next(orders)
            shuffled(self.order)

    guide = Shuffled()
    terms = TraceKL_ELBO(num_particles=2).decompose(lambda: shuffled(guide.order), guide)
    with pytest.raises(ValueError, match="different minibatches"):
        terms.per_datum("data")


def test_standard_errors_are_those_of_the_mean_over_particles():
    elbo = TraceGap_ELBO(num_particles=200, vectorize_particles=True)
    terms = elbo.decompose(model, guide)
    samples = terms.sites["z"].per_particle("kl", ())
    assert samples.shape == (200,)
    assert_close(terms.standard_error["kl"], samples.std() / 200**0.5)
    assert_close(terms.standard_error["elbo"], samples.std() / 200**0.5)
    assert TraceGap_ELBO().decompose(model, guide).standard_error["kl"].isnan()


def test_terms_are_a_record_of_the_step_that_made_them():
    loc = torch.tensor(0.3, requires_grad=True)

    def latent():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", loc)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def moving():
        pyro.sample("z", dist.Normal(loc, 1.0))

    elbo = TraceKL_ELBO()
    elbo.loss_and_grads(latent, moving)
    terms = elbo.terms
    with torch.no_grad():
        loc.add_(10.0)
    assert_close(terms.kl, torch.tensor(0.5 * 0.09))
    assert_close(terms.factors, torch.tensor(0.3))
    assert not terms.elbo.requires_grad


def test_a_density_that_is_a_view_of_a_parameter_is_recorded_as_it_was():
    pyro.clear_param_store()
    loc = pyro.param("loc", lambda: torch.zeros(3))

    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("three", 3):
            pyro.factor("whole", loc)
        with pyro.plate("two", 2):
            pyro.factor("view", loc[:2])
        pyro.factor("sum", loc.sum())

    def guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    for cls in (TraceGap_ELBO, TraceEntropy_ELBO, TraceKL_ELBO):
        elbo = cls()
        elbo.differentiable_loss(model, guide)
        with torch.no_grad():
            loc.add_(10.0)
        terms = elbo.terms
        with torch.no_grad():
            loc.sub_(10.0)
        assert terms.factors == 0


def test_a_point_mass_at_its_value_has_its_log_density_and_elsewhere_none():
    point, density = torch.tensor([1.0, 2.0]), torch.tensor([-0.5, 0.25], requires_grad=True)

    def program(obs):
        def run():
            with pyro.plate("n", 2):
                pyro.sample("z", dist.Delta(point, log_density=density), obs=obs)

        return run

    def nothing():
        pass

    def reconstruction(obs):
        elbo = TraceGap_ELBO()
        loss = elbo.differentiable_loss(program(obs), nothing)
        (gradient,) = torch.autograd.grad(loss, density)
        return elbo.terms.reconstruction, gradient

    for obs in (point, point.clone()):
        value, gradient = reconstruction(obs)
        assert value == -0.25
        assert gradient.tolist() == [-1, -1]
    assert reconstruction(point + torch.tensor([0.0, 1.0]))[0] == -torch.inf


class Guide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor(1.0))
        self.scale = PyroParam(torch.tensor(0.5), constraints.positive)

    def forward(self):
        pyro.sample("z", dist.Normal(self.loc, self.scale))


def latent():
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def test_the_module_holds_the_step_count():
    elbo = TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=10))
    module = elbo(latent, Guide())
    module().backward()
    module.eval()
    module()
    module.train()
    with torch.no_grad():
        module()
    assert elbo.step_count == 1
    other = TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=10))
    other(latent, Guide()).load_state_dict(module.state_dict())
    assert (other.step_count, other.beta) == (1, 0.1)


def test_the_loss_says_what_it_is():
    text = repr(TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=3)))
    assert text.startswith("TraceKL_ELBO(beta=Linear(")


def test_a_nan_is_named():
    def broken():
        pyro.sample("z", dist.Normal(torch.tensor(float("nan")), 1.0))

    with (
        pyro.validation_enabled(False),
        pytest.warns(
            UserWarning,
            match="log likelihood of site 'x' is nan .*; the .* of site 'z'",
        ),
    ):
        assert math.isnan(TraceKL_ELBO().loss(latent, broken))


class FreeBits_ELBO(TraceKL_ELBO):
    def objective(self, reconstruction, kl_by_site):
        return reconstruction - sum(kl.clamp(min=2.0) for kl in kl_by_site.values())


def test_a_new_loss_is_one_hook():
    module = Guide()
    elbo = FreeBits_ELBO()
    loss = elbo.loss_and_grads(latent, module)
    assert_close(torch.tensor(-loss), elbo.terms.reconstruction - 2.0)
    assert -loss == elbo.terms.objective
    assert_close(elbo.terms.kl, torch.tensor(KL))


def test_plan_says_how_and_why():
    text = str(TraceKL_ELBO(beta=4.0).plan(model, guide))
    assert "KL(Normal || Normal)" in text
    plan = TraceEntropy_ELBO().plan(model, guide)["z"]
    assert (plan.kl, plan.entropy, plan.gradient) == ("sampled", "exact", "pathwise")
    assert plan.plates == ("data",)


def test_terms_print_totals_and_per_datum_values():
    data = torch.zeros(4)

    def observed():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def local():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(torch.ones(()), 0.5))

    text = str(TraceKL_ELBO(beta=2.0).decompose(observed, local))
    assert "per datum (of 4)" in text
    assert "weighted KL (beta = 2)" in text
    assert f"{4 * KL:.3f}" in text and f"{KL:.4f}" in text

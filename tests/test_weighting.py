"""How the weight enters: the same number with every loss, guide and structure, or an error."""

from __future__ import annotations

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.reparam import SplitReparam
from support import LOSSES, assert_close, assert_mean
from weighted import KL, guide, losses, mixed, model, vector

from pyro_elbo import (
    BetaELBOMixin,
    TraceGap_ELBO,
    TraceKL_ELBO,
    UnsupportedSiteError,
    schedules,
)


def test_the_renyi_bound_takes_weighted_log_ratios():
    data = torch.tensor(0.3)

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    elbo = mixed(RenyiELBO)(alpha=0.5, num_particles=3, beta=4.0)
    pyro.set_rng_seed(1)
    loss = elbo.loss(model, guide)
    pyro.set_rng_seed(1)
    z = torch.stack([guide() for _ in range(3)])
    log_ratio = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(1.0, 0.5).log_prob(z)
    log_weight = dist.Normal(z, 1.0).log_prob(data) + 4 * log_ratio
    bound = ((0.5 * log_weight).logsumexp(0) - math.log(3)) / 0.5
    assert_close(torch.tensor(-loss), bound)


def test_what_depends_on_an_auxiliary_comes_after_it():
    """The guide draws `a` from the auxiliary of `b`: then no KL of `b` given `a` is closed."""

    def entangled():
        u = pyro.sample("b_unconstrained", dist.Normal(0.5, 1.0), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Normal(u, 1.0))
        pyro.sample("b", dist.Delta(u))

    with pytest.warns(UserWarning, match="site 'b': a parent of it in the model"):
        values = losses(TraceKL_ELBO(), two_latents, entangled)
    prior = -math.log(2 * math.pi) - 0.5 * (0.25 + 2.0) - 0.5
    entropy = math.log(2 * math.pi * math.e)
    assert_mean(-values, torch.tensor(prior + entropy))


def test_an_auxiliary_that_is_transformed_keeps_its_jacobian():
    def shifted():
        u = pyro.sample("z_unconstrained", dist.Normal(1.0, 0.5), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(2 * u, log_density=-torch.tensor(2.0).log()))

    exact = torch.tensor(0.5 * (1 + 4) - 0.5)
    values = losses(TraceKL_ELBO(), model, shifted)
    assert_mean(values, exact)


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_a_reparameterised_observed_site_is_not_weighed(cls):
    observed = poutine.condition(vector, data={"z": torch.ones(2)})
    split = poutine.reparam(observed, config={"z": SplitReparam([1, 1], -1)})
    terms = cls(beta=4.0).decompose(split, lambda: None)
    assert_close(terms.reconstruction, dist.Normal(0.0, 1.0).log_prob(torch.ones(2)).sum())
    assert terms.kl == 0


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_only_a_reparameteriser_makes_an_observed_delta_a_prior(cls):
    def split_guide():
        pyro.sample("z_split_0", dist.Normal(torch.ones(1), 0.5).to_event(1))
        pyro.sample("z_split_1", dist.Normal(torch.ones(1), 0.5).to_event(1))

    def with_namesakes():
        pyro.deterministic("z_loc", torch.zeros(()))
        pyro.sample("z_obs", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    split = poutine.reparam(with_namesakes, config={"z": SplitReparam([1, 1], -1)})
    terms = cls(beta=4.0).decompose(split, split_guide)
    assert_close(terms.reconstruction, dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0)))
    assert terms.sites["z"].beta == 4.0

    def own_likelihood():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        density = -0.5 * (z - 2) ** 2
        pyro.sample("x", dist.Delta(torch.zeros(()), log_density=density), obs=torch.zeros(()))

    terms = cls(beta=4.0).decompose(own_likelihood, guide)
    assert terms.sites["x"].role == "observed"
    assert terms.reconstruction < 0


def two_latents():
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("b", dist.Normal(a, 1.0))


def two_guides():
    pyro.sample("a", dist.Normal(torch.ones(()), 0.5))
    pyro.sample("b", dist.Normal(torch.ones(()), 0.5))


@pytest.mark.parametrize("cls", [*LOSSES, mixed(Trace_ELBO), mixed(TraceMeanField_ELBO)])
def test_weights_by_site(cls):
    kl_b = math.log(2) + (0.25 + 0.25) / 2 - 0.5
    for beta, exact in [
        ({"a": 2.0}, 2 * KL + kl_b),
        ({"a": 2.0, "*": 0.5}, 2 * KL + 0.5 * kl_b),
        ({"b": 0.0, "a": schedules.Constant(3.0)}, 3 * KL),
    ]:
        assert_mean(losses(cls(beta=beta), two_latents, two_guides), torch.tensor(exact))


def test_a_marginalised_site_refuses_a_weight():
    @config_enumerate
    def mixture():
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("z", dist.Normal(c, 1.0))

    elbo = mixed(TraceEnum_ELBO)(max_plate_nesting=0, beta=2.0)
    with pytest.raises(UnsupportedSiteError, match="'c'"):
        elbo.loss(mixture, guide)

    @config_enumerate
    def separate():
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(z + c, 1.0), obs=torch.tensor(1.0))

    for beta in ({"z": 3.0}, {"z": 3.0, "c": 1.0}, {"*": 3.0, "c": 1.0}):
        pyro.set_rng_seed(0)
        loss = mixed(TraceEnum_ELBO)(max_plate_nesting=0, beta=beta).loss(separate, guide)
        pyro.set_rng_seed(0)
        z = guide()
        lik = dist.Normal(torch.stack([z, z + 1]), 1.0).log_prob(torch.tensor(1.0))
        evidence = (lik + torch.tensor([0.7, 0.3]).log()).logsumexp(0)
        log_ratio = dist.Normal(0.0, 1.0).log_prob(z) - dist.Normal(1.0, 0.5).log_prob(z)
        assert_close(torch.tensor(-loss), evidence + 3 * log_ratio)
    assert math.isfinite(mixed(TraceEnum_ELBO)(max_plate_nesting=0).loss(mixture, guide))


def test_model_and_guide_stay_as_they_are():
    TraceGap_ELBO(beta=4.0).loss(model, guide)
    for program in (model, guide):
        site = poutine.trace(program).get_trace().nodes["z"]
        assert site["scale"] == 1.0
        assert "beta" not in site


def test_an_enclosing_scale_is_seen_by_objective_and_terms():
    elbo = TraceKL_ELBO(beta=4.0)
    with poutine.scale(scale=3.0):
        terms = elbo.decompose(model, guide)
    assert_close(terms.kl, torch.tensor(3 * KL))
    assert_close(terms.objective, torch.tensor(-12 * KL))


def test_only_training_advances_a_schedule():
    scale = torch.tensor(0.5, requires_grad=True)

    def trained():
        pyro.sample("z", dist.Normal(torch.ones(()), scale))

    elbo = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=3))
    elbo.loss(model, trained)
    elbo.decompose(model, trained)
    elbo.plan(model, trained)
    elbo.differentiable_loss(model, trained)
    assert (elbo.step_count, elbo.beta) == (0, 4.0)
    elbo.loss_and_grads(model, trained)
    assert (elbo.step_count, elbo.beta) == (1, 3.0)
    with elbo.hold():
        elbo.loss_and_grads(model, trained)
        assert elbo.step_count == 1
        elbo.advance()
    assert (elbo.step_count, elbo.beta) == (2, 2.0)
    other = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=3))
    other.load_state_dict(elbo.state_dict())
    assert other.beta == 2.0


class BetaTrace_ELBO(BetaELBOMixin, Trace_ELBO):
    pass


def come_and_go(every):
    runs = itertools.count()

    def program(scale):
        def inner():
            pyro.sample("z", dist.Normal(torch.zeros(()), scale))
            if next(runs) // 2 % every == every - 1:
                pyro.sample("w", dist.Normal(torch.ones(()), scale))

        return inner

    return program(torch.tensor(1.0)), program(torch.tensor(0.5))


@pytest.mark.parametrize("cls", [TraceKL_ELBO, BetaTrace_ELBO])
def test_a_weighed_site_may_come_and_go(cls):
    elbo = cls(beta={"w": 4.0, "*": 0.5})
    losses = [elbo.loss(*come_and_go(3)) for _ in range(3)]
    assert all(map(math.isfinite, losses))
    elbo.loss(*come_and_go(1000))


@pytest.mark.parametrize("cls", [TraceKL_ELBO, BetaTrace_ELBO])
def test_a_weighed_site_that_never_comes_is_an_error(cls):
    with pytest.raises(ValueError, match="beta names site 'w'.*the latents are: 'z'"):
        cls(beta={"w": 4.0}).loss(*come_and_go(1000))


def test_looking_for_a_site_keeps_the_noise():
    draws = []
    for beta in ({"w": 4.0}, {"z": 4.0}):
        pyro.set_rng_seed(0)
        BetaTrace_ELBO(beta=beta).loss(*come_and_go(3))
        draws.append(torch.rand(()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO])
def test_a_latent_that_the_guide_lacks_is_refused(loss):
    """Pyro's losses warn, or say KeyError; the number would be wrong."""

    class Beta_ELBO(BetaELBOMixin, loss):
        pass

    def model():
        c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor(1.0))

    for validation in (False, True):
        pyro.enable_validation(validation)
        elbo = Beta_ELBO()
        with pytest.raises(ValueError, match="'c'"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            elbo.loss(model, lambda: None)

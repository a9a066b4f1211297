"""AutoGuides where a number could be wrong without a word: point masses, other models, copies."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from auto_guides import listed, make
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoNormalMessenger,
    AutoStructured,
)
from support import LOSSES, assert_mean

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO

loss_classes = pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
OBSERVED = torch.tensor(2.0, dtype=torch.float64)


def model(data=OBSERVED):
    z = pyro.sample("z", dist.Normal(0.0, 1e-3))
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + w, 1.0), obs=data)


POINT_MASSES = {
    "AutoLaplaceApproximation": AutoLaplaceApproximation,
    "AutoStructured": lambda model: AutoStructured(
        model, conditionals={"z": "delta", "w": "normal"}, dependencies={}
    ),
    "after a joint part": listed((AutoDiagonalNormal, ["w"]), (AutoDelta, ["z"])),
    "before a joint part": listed((AutoDelta, ["z"]), (AutoDiagonalNormal, ["w"])),
}


@pytest.mark.parametrize("name", POINT_MASSES)
@loss_classes
def test_a_point_mass_gives_no_importance_bound(name, cls):
    """The mean of p / q over the rest alone would exceed log p(x), here by 5 nats."""
    guide = make(POINT_MASSES[name], model, step=0.0)
    terms = cls(num_particles=20).decompose(model, guide)
    assert terms.importance_bound.isnan()
    assert "point mass" in terms.no_bound
    with pytest.raises(ValueError, match="point mass"):
        terms.evidence_gap()


@loss_classes
def test_a_point_mass_after_a_joint_part_is_its_own_group(cls):
    guide = make(POINT_MASSES["after a joint part"], model)
    terms = cls().decompose(model, guide)
    assert terms.sites["z"].role == "map"
    assert terms.sites["_AutoGuideList.0_latent"].members == ("_AutoGuideList.0_latent", "w")


@config_enumerate
def mixture():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    c = pyro.sample("c", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(z + 4 * c, 0.5), obs=OBSERVED)


OTHER_MODELS = {
    "other sites": (mixture, poutine.block(mixture, hide=["c"])),
    "other data": (lambda: model(torch.tensor(9.0)), model),
    "a scale": (poutine.scale(model, 10.0), model),
    "a condition": (poutine.condition(model, data={"z": torch.tensor(3.0)}), model),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
@loss_classes
def test_a_messenger_runs_its_own_model_so_another_is_refused(name, cls):
    """As Pyro runs it, the loss's model never runs: other data, scales and sites are ignored."""
    given, own = OTHER_MODELS[name]
    guide = make(AutoNormalMessenger, own)
    with pytest.raises(ValueError, match="AutoNormalMessenger.*model"):
        cls(max_plate_nesting=0).loss(given, guide)


@loss_classes
def test_a_value_that_is_now_and_then_a_copy_is_none(cls):
    """The closed form would hold given u > 0 only; by the definition the mean is -0.149."""

    def prior():
        pyro.sample("z", dist.Normal(1.0, 1.0))

    def clamped():
        u = pyro.sample("z_unconstrained", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.clamp(min=0.0)))

    positive = (2 * torch.pi) ** -0.5
    exact = 0.5 * (0.5 - 2 * positive + 1) - 0.5
    losses = torch.tensor([cls().loss(prior, clamped) for _ in range(1500)])
    assert_mean(losses, torch.tensor(exact))


@loss_classes
def test_a_copy_that_carries_a_density_keeps_it(cls):
    def prior():
        pyro.sample("z", dist.Normal(1.0, 1.0))

    def weighed():
        u = pyro.sample("z_unconstrained", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u, log_density=torch.tensor(0.7)))

    losses = torch.tensor([cls().loss(prior, weighed) for _ in range(200)])
    assert_mean(losses, torch.tensor(0.5 + 0.7))


def test_a_messenger_on_a_real_event_has_a_closed_kl():
    def vector():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = make(AutoNormalMessenger, vector)
    terms = TraceKL_ELBO().decompose(vector, guide)
    assert terms.sites["z"].how["kl"] == "exact"
    assert terms.sites["z"].kl_per_dimension.shape == (2,)
    assert TraceGap_ELBO().decompose(vector, guide).sites["z"].how["kl"] == "sampled"


@loss_classes
def test_a_density_of_other_coordinates_gives_no_importance_bound(cls):
    auxiliary = {"is_auxiliary": True}

    def mixture_of_point_masses():
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=auxiliary)
        w = pyro.sample("u", dist.Normal(0.0, 1.0), infer=auxiliary)
        pyro.sample("z", dist.Delta(c))
        pyro.sample("w", dist.Delta(w))

    def more_noise_than_latents():
        u = pyro.sample("u", dist.Normal(torch.zeros(3), 1.0).to_event(1), infer=auxiliary)
        pyro.sample("z", dist.Delta(u[..., 0] + u[..., 1]))
        pyro.sample("w", dist.Delta(u[..., 2]))

    for guide in (mixture_of_point_masses, more_noise_than_latents):
        terms = cls(num_particles=20).decompose(model, guide)
        assert "no density over the latents" in terms.no_bound

"""Rate and distortion where the optimum at each weight is known, and gradients with known noise."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import LOSSES, assert_close, assert_mean
from torch.distributions import kl_divergence

from pyro_elbo import TraceGap_ELBO, diagnostics, schedules

X = torch.tensor([3.0, -2.0, 0.5, 1.0], dtype=torch.float64)
BETAS = [0.25, 0.5, 1.0, 2.0, 4.0]


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def optimum(beta):
    precision = 1 + 1 / (beta * 0.64)
    return X / (beta * 0.64) / precision, precision**-0.5


def fit(elbo):
    loc, scale = optimum(elbo.beta)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    return model, guide, (X,)


def test_rate_and_distortion_are_those_of_the_optimum():
    curve = diagnostics.rate_distortion(fit, BETAS, num_particles=2000, progress=False)
    for at, beta in enumerate(BETAS):
        loc, scale = optimum(beta)
        rate = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0)).sum()
        errors = ((X - loc) ** 2 + scale**2) / 0.64
        distortion = 0.5 * (math.log(2 * math.pi * 0.64) + errors).sum()
        assert_close(curve.rate[at], rate, 10.0)
        assert (curve.distortion[at] - distortion).abs() < 7 * curve.distortion_error[at]
    assert_close(curve.elbo, -curve.rate - curve.distortion, 10.0)
    assert (curve.rate.diff() < 0).all()
    assert curve.active_units.tolist() == [1, 1, 1, 1, 1]
    slopes = curve.distortion.diff() / -curve.rate.diff()
    lower, upper = torch.tensor(BETAS[:-1]), torch.tensor(BETAS[1:])
    margin = 7 * torch.hypot(curve.distortion_error[1:], curve.distortion_error[:-1])
    margin = margin / -curve.rate.diff()
    assert ((lower - margin < slopes) & (slopes < upper + margin)).all()
    assert len(str(curve).splitlines()) == 1 + len(BETAS)


def test_training_goes_on_from_where_it_was():
    seen = []

    def trained(elbo):
        loc = pyro.param("loc", torch.tensor(0.0))
        seen.append((elbo.beta, float(loc.detach())))
        loc.data += 1.0
        return model, fit(elbo)[1], (X,)

    diagnostics.rate_distortion(trained, [1, 2], progress=False)
    assert seen == [(1.0, 0.0), (2.0, 1.0)]


def test_what_has_no_data_plate_has_no_active_units():
    def single(x):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.5, 1.0))

    curve = diagnostics.rate_distortion(
        lambda elbo: (single, guide, (X[0],)), [1.0], progress=False
    )
    assert curve.active_units.tolist() == [-1]
    assert str(curve).endswith("?")


@pytest.mark.parametrize(
    ("betas", "match"), [([], "betas is empty"), ([1.0, -1.0], "finite and >= 0")]
)
def test_bad_weights(betas, match):
    with pytest.raises(ValueError, match=match):
        diagnostics.rate_distortion(fit, betas)


def noisy():
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def noisy_guide():
    loc = pyro.param("loc", torch.tensor([1.0, -2.0]))
    pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("particles", [1, 4])
def test_the_signal_of_a_gradient_with_known_noise(particles):
    """By samples the gradient in loc is z, with mean loc and variance 1 in each dim."""
    elbo = TraceGap_ELBO(num_particles=particles, vectorize_particles=particles > 1)
    signals = [
        diagnostics.gradient_signal(noisy, noisy_guide, elbo=elbo, num_samples=50)
        for _ in range(60)
    ]
    squares = torch.stack([signal.norm["loc"] ** 2 for signal in signals])
    assert_mean(squares, torch.tensor(5.0))
    noise = torch.stack([(s.norm["loc"] / s.ratio["loc"]) ** 2 for s in signals])
    assert_mean(noise, torch.tensor(2.0 / particles))


@pytest.mark.parametrize("cls", LOSSES)
def test_a_signal_leaves_everything_as_it_was(cls):
    elbo = cls(beta=schedules.Linear(4.0, 1.0, num_steps=10))
    pyro.clear_param_store()
    noisy_guide()
    loc = pyro.get_param_store()._params["loc"]
    loc.grad = torch.ones(2)
    signal = diagnostics.gradient_signal(noisy, noisy_guide, elbo=elbo, num_samples=3)
    assert torch.equal(loc.grad, torch.ones(2))
    assert elbo.step_count == 0
    assert "loc" in str(signal)
    with pytest.raises(ValueError, match="neither model nor guide has a parameter"):
        diagnostics.gradient_signal(noisy, noisy)

"""Calibration on simulated data: exact guides pass, and each kind of wrong one is told."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_elbo import UnsupportedSiteError, diagnostics

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
OPTIONS = {"num_simulations": 150, "num_samples": 99, "progress": False}


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of(shift=0.0, scale=0.5**0.5):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + shift, scale))

    return guide


@pytest.mark.parametrize("method", [diagnostics.vsbc, diagnostics.sbc])
def test_an_exact_guide_passes(method):
    pyro.set_rng_seed(0)
    result = method(model, guide_of(), X, **OPTIONS)
    assert result.passes
    assert result.names == ("z[0]", "z[1]", "z[2]")
    assert "nothing flagged" in str(result)
    assert ((result.probabilities > 0) & (result.probabilities < 1)).all()


@pytest.mark.parametrize("method", [diagnostics.vsbc, diagnostics.sbc])
@pytest.mark.parametrize(("shift", "word"), [(0.6, "too high"), (-0.6, "too low")])
def test_a_shifted_guide_is_flagged(method, shift, word):
    result = method(model, guide_of(shift), X, **OPTIONS)
    assert result.flagged.all()
    assert word in result.finding(0)


@pytest.mark.parametrize(("scale", "word"), [(0.25, "too narrow"), (2.0, "too wide")])
def test_a_wrong_spread_is_flagged_by_the_ranks_alone(scale, word):
    result = diagnostics.sbc(model, guide_of(scale=scale), X, **OPTIONS)
    assert result.flagged.all()
    assert word in result.finding(0)


def test_a_narrow_guide_that_leans_is_flagged_by_its_symmetry():
    """Mean field on a skewed posterior: too narrow, and off its centre."""

    def skewed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.log(), 1.0), obs=x)

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(x / 2 + 0.5, 0.1))

    result = diagnostics.vsbc(skewed, narrow, X, **OPTIONS)
    assert not result.passes


class Fitted(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self, *args):
        pyro.param("used", torch.tensor(1.0))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(self.loc, 0.5**0.5))


def closed(*args):
    """The data are no argument."""
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)


def test_a_guide_is_refitted_to_each_data_set_and_put_back():
    seen = []

    def refit(model, guide, *args):
        data = pyro.poutine.trace(model).get_trace(*args).nodes["x"]["value"]
        seen.append(data)
        with torch.no_grad():
            guide.loc.copy_(data / 2)
        pyro.param("fresh", torch.tensor(1.0))
        return guide

    guide = Fitted()
    pyro.set_rng_seed(1)
    result = diagnostics.sbc(closed, guide, refit=refit, **OPTIONS)
    assert result.passes
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(guide.loc, torch.zeros(3))
    assert "fresh" not in pyro.get_param_store()
    with pytest.raises(ValueError, match="no argument of the guide equals what 'x' observes"):
        diagnostics.sbc(closed, guide)


def test_discrete_latents_have_ties_broken_by_chance():
    def mixture(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            pyro.sample("x", dist.Normal(1.0 * c, 1.0), obs=x)

    def exact(x):
        joint = dist.Normal(torch.arange(3.0), 1.0).log_prob(x[:, None])
        joint = joint + torch.tensor([0.2, 0.5, 0.3]).log()
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=joint), infer={"enumerate": "parallel"})

    pyro.set_rng_seed(2)
    assert diagnostics.sbc(mixture, exact, X, **OPTIONS).passes


def test_what_cannot_be_simulated_is_refused():
    def with_factor(x):
        model(x)
        pyro.factor("f", torch.tensor(0.3))

    def autoregressive(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        for t in range(1, 3):
            pyro.sample(f"x_{t}", dist.Normal(z + x[t - 1], 1.0), obs=x[t])

    def subsampled(x):
        with pyro.plate("data", len(x), subsample_size=2) as indices:
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[indices])

    def part(x):
        with pyro.plate("data", len(x), subsample_size=2) as indices:
            pyro.sample("z", dist.Normal(x[indices] / 2, 1.0))

    with pytest.raises(UnsupportedSiteError, match="'f'.*factor"):
        diagnostics.vsbc(with_factor, guide_of(), X)
    with pytest.raises(ValueError, match="'x_1' has another density at the simulated data"):
        diagnostics.vsbc(
            autoregressive, guide_of(), X, arguments=lambda data: ((X + 1,), {}), progress=False
        )
    with pytest.raises(ValueError, match="subsampled"):
        diagnostics.vsbc(subsampled, part, X, arguments=lambda data: ((X,), {}), progress=False)
    for name in ("num_simulations", "num_samples"):
        with pytest.raises(ValueError, match=f"{name} must be an integer >= 10"):
            diagnostics.sbc(model, guide_of(), X, **{name: 3})

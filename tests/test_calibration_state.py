"""Calibration: its level holds, and what a refit changes is put back."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from pyro_elbo import diagnostics
from pyro_elbo.diagnostics.calibration import symmetry_p_value


@pytest.mark.parametrize("count", [20, 101])
def test_the_test_of_symmetry_has_its_level(count):
    """On symmetric numbers no p-value comes more often than it says."""
    draws = torch.rand(4000, count, dtype=torch.float64)
    values = torch.tensor([symmetry_p_value(row) for row in draws])
    for level in (0.01, 0.05, 0.2):
        flagged = int((values <= level).sum())
        assert stats.binomtest(flagged, 4000, level, alternative="greater").pvalue > 1e-6
        assert flagged > 0


def test_the_test_of_symmetry_is_exact_on_few_numbers():
    """Of 3 signs: 2 of 8 walks reach 3, 4 more reach 2, the others 1."""
    assert symmetry_p_value(torch.tensor([0.9, 0.8, 0.7])) == 0.25
    assert symmetry_p_value(torch.tensor([0.9, 0.8, 0.45])) == 0.5
    assert symmetry_p_value(torch.tensor([0.9, 0.2, 0.45])) == 1.0


def test_lopsided_numbers_are_told():
    assert symmetry_p_value(torch.rand(100, dtype=torch.float64) ** 2) < 1e-3


def model(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 0.5**0.5))


@pytest.mark.parametrize("method", [diagnostics.sbc, diagnostics.vsbc])
def test_a_refit_that_clears_the_store_loses_nothing(method):
    mine = pyro.param("mine", torch.tensor(3.0))
    pyro.param("m", torch.tensor(5.0))
    leaf = mine.unconstrained()

    def refit(model, guide, x):
        pyro.clear_param_store()
        pyro.param("m", x / 2)
        return guide

    found = method(model, guide, torch.tensor(0.0), refit=refit, num_simulations=20, progress=False)
    assert found.passes
    assert sorted(pyro.get_param_store().keys()) == ["m", "mine"]
    assert pyro.param("mine").unconstrained() is leaf and pyro.param("m") == 5.0


def test_a_model_that_a_refit_changes_is_put_back():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, self.scale.detach()), obs=x)

    module, seen = Model(), []

    def refit(model, guide, x):
        seen.append(module.scale.item())
        module.scale.data += 0.5
        module.eval()
        return lambda x: pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    diagnostics.vsbc(
        module, guide, torch.tensor(0.0), refit=refit, num_simulations=10, progress=False
    )
    assert seen == [1.0] * 10 and module.scale == 1.0
    assert module.training and module.drop.training


def two(x, y):
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x", dist.Normal(a, 1.0), obs=x)
    pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def two_guide(x, y):
    pyro.sample("a", dist.Normal(x / 2, 0.5**0.5))
    pyro.sample("b", dist.Normal(y / 2, 0.5**0.5))


def test_placeholders_that_are_equal_are_told_apart_by_identity():
    placeholders = torch.zeros(()), torch.zeros(())
    found = diagnostics.sbc(two, two_guide, *placeholders, num_simulations=200, progress=False)
    assert found.passes


def test_placeholders_that_cannot_be_told_apart_are_refused():
    zero = torch.zeros(())
    with pytest.raises(ValueError, match=r"several arguments equal what site 'x' observes"):
        diagnostics.sbc(two, two_guide, zero, zero, num_simulations=10, progress=False)

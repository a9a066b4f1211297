"""The gap over training, which it must not touch."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from pyro_elbo import TraceGap_ELBO, evidence
from pyro_elbo.training import TrackEvidence

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


def trained(track):
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceGap_ELBO())
    losses = []
    for step in range(101):
        track(step)
        losses.append(svi.step(X))
    return losses, pyro.param("loc").detach().clone()


def test_training_is_the_same_bit_for_bit():
    track = TrackEvidence(evidence.ImportanceWeighting(200, progress=False), 50, model, guide, X)
    losses, loc = trained(track)
    others, other = trained(lambda step: None)
    assert losses == others
    assert torch.equal(loc, other)
    assert track.steps == [0, 50, 100]
    assert (track.gap.diff() < 0).all()
    exact = dist.Normal(0.0, 2**0.5).log_prob(X).sum()
    assert ((track.log_evidence - exact).abs() < 7 * track.log_evidence_error + 1e-9).all()


def test_its_stream_is_its_own():
    def gaps():
        pyro.clear_param_store()
        method = evidence.ImportanceWeighting(20, progress=False)
        track = TrackEvidence(method, 1, model, guide, X, seed=5)
        track(0)
        torch.rand(())
        track(1)
        return track.gap

    first, second = gaps(), gaps()
    assert torch.equal(first, second)
    assert first[0] != first[1]


def test_an_error_leaves_the_stream_of_training():
    track = TrackEvidence(evidence.ImportanceWeighting(2), 1, model, lambda x: None, X)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="'z' is not sampled by the guide"):
        track(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert track.steps == []


@pytest.mark.parametrize("every", [0, -1, 1.5])
def test_bad_input(every):
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        TrackEvidence(evidence.ImportanceWeighting(2), every, model, guide, X)


class Lazy(nn.Module):
    """A decoder that keeps running statistics, inside a model."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def model(self, x):
        pyro.module("norm", self.norm)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + 0.01 * self.norm(x[:, None])[:, 0], 1.0), obs=x)


def lazy_guide(x):
    loc = pyro.param("loc", lambda: torch.randn(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.7))


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoMultivariateNormal", "lazy"])
def test_what_is_made_at_the_first_step_is_the_same(kind):
    """Random first values, and buffers in train mode."""

    def losses(is_tracked):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        program = Lazy()
        guides = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}
        guide = guides[kind](program.model) if kind in guides else lazy_guide
        svi = SVI(program.model, guide, pyro.optim.Adam({"lr": 0.05}), TraceGap_ELBO())
        method = evidence.ImportanceWeighting(20, progress=False)
        track = TrackEvidence(method, 2, program.model, guide, X)
        found = []
        for step in range(1, 7):
            if is_tracked and kind == "lazy":
                track(step - 1)
            found.append(svi.step(X))
            if is_tracked:
                track(step)
        assert (6 in track.steps) is is_tracked
        return found, program.norm.state_dict()

    (tracked, norm), (plain, other) = losses(True), losses(False)
    assert tracked == plain
    assert all(torch.equal(norm[name], other[name]) for name in norm)


def test_an_autoguide_that_has_not_run_is_refused():
    guide = AutoNormal(model)
    method = evidence.ImportanceWeighting(20, progress=False)
    with pytest.raises(ValueError, match="AutoNormal has no parameters before its first step"):
        TrackEvidence(method, 1, model, guide, X)(0)
    assert not pyro.get_param_store()


def test_nothing_measured_yet_is_an_empty_column():
    track = TrackEvidence(evidence.ImportanceWeighting(20), 2, model, guide, X)
    assert track.gap.shape == (0,)

"""A guide's report: what it holds the guide to, and what it says to do."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from test_evidence import X, discrete, discrete_guide, shared_only, shared_only_guide
from torch import nn

from pyro_elbo import UnsupportedSiteError, diagnostics, evidence, reference


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Guide(PyroModule):
    def __init__(self, slope, scale):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.scale = scale

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, self.scale))


def found(report):
    return {finding.what: finding for finding in report.findings}


def test_a_good_guide_passes():
    report = diagnostics.guide_report(model, Guide(0.5, 0.72), X)
    assert report.passes
    assert "look" not in str(report)
    assert {"ELBO", "log p(x)", "gap per datum, worst", "dead units"} < found(report).keys()


def test_a_narrow_guide_does_not():
    report = diagnostics.guide_report(model, Guide(0.5, 0.1), X)
    findings = found(report)
    assert not report.passes
    assert findings["gap per datum, worst"].mark == "look"
    assert findings["Pareto k > 0.7"].mark == "look"
    assert "evidence.AnnealedImportance" in str(report)
    assert findings["dead units"].mark == "ok"
    assert max(map(len, str(report).splitlines())) <= 100


def test_a_collapsed_guide_is_told():
    problem = reference.LinearVAE()
    problem.fit_maximum_likelihood(noise=50.0)
    problem.set_guide_to_posterior()
    report = diagnostics.guide_report(problem.model, problem.guide, problem.data)
    assert found(report)["dead units"].mark == "look"
    assert "collapsed" in str(report)
    assert report.collapse.dead_share == 1.0


def test_shared_latents_have_one_gap_and_no_units():
    report = diagnostics.guide_report(shared_only, shared_only_guide, X)
    findings = found(report)
    assert findings["gap"].mark == "ok"
    assert findings["dead units"].value == "no latent per datum"
    assert findings["dead units"].mark == findings["dead units"].advice == ""
    assert report.collapse is None
    assert report.signal is None


def test_an_exact_evidence_needs_no_weights():
    report = diagnostics.guide_report(discrete, discrete_guide, X, estimator=evidence.Enumeration())
    assert found(report)["Pareto k > 0.7"].mark == ""
    assert found(report)["log p(x)"].value[0] == "-"


def test_too_few_samples_for_a_tail_are_told():
    report = diagnostics.guide_report(model, Guide(0.5, 0.1), X, num_samples=24)
    finding = found(report)["Pareto k > 0.7"]
    assert finding.mark == "?"
    assert "24 samples" in finding.advice


def test_the_posterior_needs_no_tail():
    report = diagnostics.guide_report(model, Guide(0.5, 0.5**0.5), X)
    assert found(report)["Pareto k > 0.7"].value == "not needed: the weights have no tail"


def test_noise_in_the_gradient_is_named():
    report = diagnostics.guide_report(model, Guide(0.5, 0.5**0.5), X)
    (finding,) = [f for f in report.findings if "signal" in f.what]
    assert finding.mark == "?"
    assert "slope" in finding.value


def test_nothing_is_changed():
    guide = Guide(0.5, 0.72)
    guide.train()
    diagnostics.guide_report(model, guide, X, num_samples=10)
    assert guide.training
    assert guide.slope.grad is None
    assert guide.slope == 0.5


def test_what_has_no_weights_is_refused():
    def missing(x):
        pass

    def point(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x))

    with pytest.raises(ValueError, match="'z' is not sampled by the guide"):
        diagnostics.guide_report(model, missing, X)
    with pytest.raises(UnsupportedSiteError, match="'z'.*no density"):
        diagnostics.guide_report(model, point, X)


def test_the_plate_of_the_units_can_be_named():
    group = torch.tensor([0, 0, 1, 1, 2])

    def regression(y):
        with pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("observations", len(y)):
            pyro.sample("y", dist.Normal(effect[..., group], 1.0), obs=y)

    def means(y):
        with pyro.plate("groups", 3):
            pyro.sample("effect", dist.Normal(torch.tensor([0.5, -0.2, 0.1]), 0.6))

    y = torch.tensor([1.0, 0.5, -0.5, 0.2, 0.1])
    unnamed, named = (
        diagnostics.guide_report(regression, means, y, plate=plate, progress=False)
        for plate in (None, "groups")
    )
    assert unnamed.collapse is None and named.collapse is not None


def test_a_shape_within_its_error_of_the_threshold_is_not_judged():
    marks = set()
    for scale in (0.45, 0.55, 0.6, 0.65, 0.7, 0.9):

        def guide(x, scale=scale):
            pyro.sample("mu", dist.Normal(x.sum() / (1 + len(x)), scale / (1 + len(x)) ** 0.5))

        finding = found(diagnostics.guide_report(shared_only, guide, X))["Pareto k > 0.7"]
        khat, error = map(float, finding.value.split(" ± "))
        judged = None if abs(khat - 0.7) < error else khat < 0.7
        assert finding.is_good is judged or abs(abs(khat - 0.7) - error) < 0.011
        assert error == pytest.approx((1 + max(khat, 0)) / 95**0.5, abs=0.006)
        marks.add(finding.mark)
    assert "?" in marks

"""The tails of importance weights: ArviZ' own of the same weights, and what is said of them."""

from __future__ import annotations

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal
from scipy.stats import norm
from support import FAILURE_BUDGET, MAX_COMPARISONS, assert_close
from test_evidence import X, discrete, local, shared, shared_guide, wide

from pyro_elbo import UnsupportedSiteError, diagnostics, evidence, plots, reference

STANDARD_ERRORS = norm.isf(FAILURE_BUDGET / MAX_COMPARISONS / 2)
PROBS = torch.tensor([0.3, 0.4, 0.3])


def recorded(guide, name):
    """A guide, and the values of a site as it samples them, with their data's indices."""
    seen = []

    def program(*args):
        trace = poutine.trace(guide).get_trace(*args)
        indices = trace.nodes["data"]["value"]
        seen.append((indices, trace.nodes[name]["value"]))

    return program, seen


def samples(seen, count, num_data):
    """Those of the weights: not of probes of one or two particles, nor what fills a batch."""
    values = torch.full((count, num_data), torch.nan)
    start = torch.zeros(num_data, dtype=torch.long)
    for indices, chunk in seen:
        if len(chunk) <= 2 or chunk.dim() < 2:
            continue
        for at, index in enumerate(indices):
            rows = slice(start[index], start[index] + len(chunk))
            values[rows, index] = chunk[:, at]
            start[index] += len(chunk)
    return values


def log_weights(z, x=X):
    prior, likelihood = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(z, 1.0).log_prob(x)
    return prior + likelihood - dist.Normal(x / 2, 0.9).log_prob(z)


def arviz_khat(weights):
    return torch.as_tensor(az.psislw(weights.movedim(0, -1).numpy().copy())[1])


def ess(weights):
    return 1 / weights.softmax(0).square().sum(0)


def assert_tails(tails, weights):
    assert_close(tails.khat, arviz_khat(weights), 1.0, ulps=1 << 20)
    assert_close(tails.ess, ess(weights), ulps=1 << 10)


@pytest.mark.parametrize("chunk_size", [None, 70])
def test_khat_is_that_of_arviz_for_each_datum_and_for_all_together(chunk_size):
    guide, seen = recorded(wide, "z")
    report = diagnostics.khat(local, guide, X, num_samples=500, chunk_size=chunk_size)
    weights = log_weights(samples(seen, 500, len(X)))
    assert_tails(report.per_datum, weights)
    assert_tails(report.joint, weights.sum(1))
    assert report.per_datum.plates == ("data",)
    assert report.per_datum.indices.tolist() == list(range(len(X)))
    assert report.joint.num_samples == report.per_datum.num_samples == 500


def test_minibatches_are_put_together():
    """The last batch of 5 is filled up with the first data, whose second samples do not count."""
    x = torch.cat([X, X + 1.0])
    guide, seen = recorded(wide, "z")
    report = diagnostics.khat(local, guide, x, 5, num_samples=300)
    whole = [(i[:2], z[:, :2]) if i[0] == 10 else (i, z) for i, z in seen if z.dim() > 1]
    weights = log_weights(samples(whole, 300, 12), x)
    assert_tails(report.per_datum, weights)
    assert_tails(report.joint, weights.sum(1))
    assert report.per_datum.indices.tolist() == list(range(12))
    assert report.part == ""


def test_data_have_the_weights_of_their_evidence():
    pyro.set_rng_seed(3)
    report = diagnostics.khat(local, wide, X, num_samples=200)
    pyro.set_rng_seed(3)
    estimate = evidence.ImportanceWeighting(200).estimate(local, wide, X)
    assert torch.equal(report.per_datum.khat, estimate.per_datum.khat)
    assert torch.equal(report.per_datum.ess, estimate.per_datum.ess)


@pytest.mark.parametrize("rate", [1.25, 2.0, 20.0])
def test_weights_with_a_pareto_tail_have_its_shape(rate):
    """Under an exponential of a larger rate, p / q has the tail 1 - 1 / rate, and exactly so."""

    def model():
        with pyro.plate("data", 50):
            pyro.sample("z", dist.Exponential(1.0))
            pyro.sample("x", dist.Normal(torch.zeros(50), 1.0), obs=torch.zeros(50))

    def guide():
        with pyro.plate("data", 50):
            pyro.sample("z", dist.Exponential(rate))

    report = diagnostics.khat(model, guide, num_samples=2000)
    tail, shape = 3 * 2000**0.5, 1 - 1 / rate
    shrunk = (tail * shape + 5) / (tail + 10)
    error = (report.per_datum.khat - shrunk).abs()
    assert (error < STANDARD_ERRORS * (1 + shape) / tail**0.5).all()
    if rate != 2.0:
        assert report.reliable == (rate < 2.0)


def test_the_weight_of_the_kl_and_scales_of_the_user_are_left_out():
    def scaled(program):
        return poutine.scale(program, 4.0)

    reports = []
    for model, guide in ((local, wide), (scaled(local), scaled(wide)), (scaled(local), wide)):
        pyro.set_rng_seed(0)
        reports.append(diagnostics.khat(model, guide, X, num_samples=100))
    for report in reports[1:]:
        assert torch.equal(report.per_datum.khat, reports[0].per_datum.khat)
        assert torch.equal(report.joint.khat, reports[0].joint.khat)


def test_the_posterior_has_no_khat_and_a_reason():
    problem = reference.ConjugateNormal()
    problem.set_guide_to_posterior()
    report = diagnostics.khat(problem.model, problem.guide, *problem.args, num_samples=100)
    for tails in filter(None, (report.joint, report.per_datum)):
        assert tails.khat.isnan().all()
        assert tails.why == "all weights are equal, as where the guide is the posterior"
        assert_close(tails.ess, torch.tensor(100.0), ulps=1 << 24)
        assert tails.reliable.all()
    assert report.reliable
    assert "as where the guide is the posterior" in str(report)
    assert "nan" not in str(report)


def test_single_precision_has_no_tail_of_rounding_errors():
    torch.set_default_dtype(torch.float32)
    x = torch.linspace(-3.0, 3.0, 200)

    def posterior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    report = diagnostics.khat(local, posterior, x, num_samples=200)
    assert report.joint.khat.isnan() and report.per_datum.khat.isnan().all()
    assert report.joint.why.startswith("all weights are equal")


def test_discrete_latents_have_weights_without_a_tail():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(PROBS))

    guide, seen = recorded(guide, "c")
    report = diagnostics.khat(discrete, guide, X, num_samples=400)
    c = samples(seen, 400, len(X)).long()
    prior = torch.tensor([0.2, 0.5, 0.3]).log() - PROBS.log()
    weights = prior[c] + dist.Normal(1.0 * c, 1.0).log_prob(X)
    assert report.per_datum.khat.isnan().all()
    assert report.per_datum.why == "the largest weights are equal, so they have no tail"
    assert report.reliable
    assert_close(report.per_datum.ess, ess(weights), ulps=1 << 10)
    assert_tails(report.joint, weights.sum(1))


@pytest.mark.parametrize("size", [None, 3], ids=["full", "minibatches"])
def test_latents_that_data_share_leave_the_joint_alone(size):
    """One value of the shared latent for each sample, whichever minibatch it meets."""
    seen = []

    def guide(*args):
        nodes = poutine.trace(shared_guide).get_trace(*args).nodes
        if len(nodes["z"]["value"]) > 6:
            seen.append([nodes[name]["value"] for name in ("mu", "z")])

    report = diagnostics.khat(shared, guide, X, size, num_samples=300)
    mu, z = seen[0][0].reshape(300, 1), torch.cat([z for _, z in seen], -1)
    precision = 1 + len(X) / 2
    guide_of_mu = dist.Normal(X.sum() / 2 / precision, 1.2 * precision**-0.5)
    weights = dist.Normal(mu, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
    weights = (weights - dist.Normal((mu + X) / 2, 0.9).log_prob(z)).sum(1)
    weights += (dist.Normal(0.0, 1.0).log_prob(mu) - guide_of_mu.log_prob(mu))[:, 0]
    assert_tails(report.joint, weights)
    assert report.per_datum is None
    assert "all data share mu" in report.why_no_datum
    assert "ImportanceWeighting is of mu alone, averaged over z" in report.why_no_datum
    assert "no k̂ per datum: all data share mu" in str(report)


def test_a_joint_guide_has_no_data_of_their_own():
    guide = AutoDiagonalNormal(local)
    guide(X)
    assert diagnostics.khat(local, guide, X, num_samples=50).per_datum is None
    with pytest.raises(UnsupportedSiteError, match="_AutoDiagonalNormal_latent.*'data'"):
        diagnostics.khat(local, guide, X, num_samples=50, plate="data")


def test_no_latent_and_no_plate():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    report = diagnostics.khat(model, lambda: None, num_samples=50)
    assert report.reliable
    assert report.why_no_datum == "no plate holds the data"


def test_a_minibatch_as_argument_says_what_it_is_of():
    def model(x):
        with pyro.plate("data", 200, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", 200, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.9))

    report = diagnostics.khat(model, guide, X, num_samples=50)
    assert report.part == "the 6 of 200 in this minibatch of 'data'"
    assert report.part in " ".join(str(report).split())
    assert report.per_datum.khat.shape == (6,)


def uniform(low, high, num_data, cls=dist.Uniform):
    """A prior on (0, 1) without likelihood to speak of, under a guide on (low, high)."""

    def model():
        with pyro.plate("data", num_data):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=torch.zeros(num_data))

    def guide():
        with pyro.plate("data", num_data):
            pyro.sample("z", cls(low, high))

    return model, guide


def test_where_every_joint_weight_is_0_data_keep_theirs():
    report = diagnostics.khat(*uniform(-1.0, 1.0, 100), num_samples=200)
    assert report.joint.why == "every weight is 0"
    assert report.joint.khat.isnan() and report.joint.ess.isnan()
    assert not report.joint.reliable
    assert report.reliable
    assert report.per_datum.why == "the largest weights are equal, so they have no tail"
    assert "joint" in report.verdict


class Grid(dist.Uniform):
    """Its samples are evenly spaced."""

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(torch.Size(sample_shape))
        places = (torch.arange(shape.numel()) + 0.5) / shape.numel()
        return self.low + (self.high - self.low) * places.reshape(shape)


def test_a_handful_of_weights_above_0_is_not_reliable():
    model, guide = uniform(0.0, 200.0, 1, Grid)
    report = diagnostics.khat(model, guide, num_samples=400)
    assert_close(report.per_datum.ess, torch.tensor([2.0]))
    assert report.per_datum.why == "no Pareto shape fits the tail"
    assert report.per_datum.khat.isnan() and report.per_datum.unusable.all()
    assert not report.reliable
    assert "1 of 1 data have weights that cannot be used (data 0)" in report.verdict
    page = diagnostics.guide_report(model, guide, num_samples=400)
    (finding,) = [found for found in page.findings if "Pareto" in found.what]
    assert finding.mark == "look" and finding.value == "1 of 1 data, worst none fits"


@pytest.mark.parametrize("count", [0, 1, 24, 30.0, True])
def test_too_few_samples_are_refused(count):
    with pytest.raises(ValueError, match="num_samples must be an integer >= 25, not"):
        diagnostics.khat(local, wide, X, num_samples=count)


def test_what_gives_no_weights_is_refused():
    def infinite():
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("f", torch.tensor(torch.inf))

    with pytest.raises(ValueError, match="'z' is not sampled by the guide"):
        diagnostics.khat(local, lambda x: None, X)
    with pytest.raises(UnsupportedSiteError, match="'z'.*no density"):
        diagnostics.khat(local, AutoDelta(local), X)
    with pytest.raises(ValueError, match=r"plate 'rows'; the plates are: \['data'\]"):
        diagnostics.khat(local, wide, X, plate="rows")
    with pytest.raises(ValueError, match=r"infinite or nan, from the sites \['f'\]"):
        diagnostics.khat(infinite, poutine.block(infinite, expose=["z"]))
    with pytest.raises(ValueError, match="every sample of the guide has weight 0"):
        diagnostics.khat(*uniform(-2.0, -1.0, 3))


def test_the_figure_takes_them_and_counts_alike():
    report = diagnostics.khat(local, wide, X, num_samples=100)
    ax = plots.khat_points(report.per_datum.khat)
    good = ax.get_legend().get_texts()[-3].get_text()
    assert f"{100 * report.per_datum.shares.good:.1f} %  (6 of 6)" in good


def test_nothing_is_changed():
    guide = AutoDiagonalNormal(local)
    guide(X)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    diagnostics.khat(local, guide, X, num_samples=50)
    assert guide.training
    for name, parameter in guide.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None

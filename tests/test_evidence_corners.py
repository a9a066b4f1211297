"""Evidence and diagnostics where data are not what they seem, or where a guide is in training."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam
from support import FAILURE_BUDGET, MAX_COMPARISONS, assert_mean
from torch import nn

from pyro_elbo import TraceKL_ELBO, UnsupportedSiteError, diagnostics, evidence, fit
from pyro_elbo.interop.arrays import psis_khat, why_no_khat
from pyro_elbo.training import (
    Checkpoint,
    EarlyStopping,
    EvaluateOn,
    GradientVariance,
    LearningRate,
    TrackEvidence,
)

X = torch.linspace(-3.0, 3.0, 12, dtype=torch.float64)


def by_arguments(x):
    """A minibatch that is given: other indices are no other data."""
    with pyro.plate("d", 12, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def residual(x):
    with pyro.plate("d", 12, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x - z)


def decentred_guide(x):
    with pyro.plate("d", 12, subsample_size=len(x)):
        pyro.sample("z_decentered", dist.Normal(0.4 * x, 0.2**0.5))


def guide_of_z(x):
    with pyro.plate("d", 12, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(0.8 * x, 0.8**0.5))


decentred = poutine.reparam(by_arguments, {"z": LocScaleReparam(0.0)})


@pytest.mark.parametrize(
    ("model", "guide"),
    [(by_arguments, guide_of_z), (decentred, decentred_guide), (residual, guide_of_z)],
    ids=["plain", "reparameterised", "residual"],
)
def test_a_given_minibatch_stands_for_itself_however_the_data_are_observed(model, guide):
    pyro.set_rng_seed(0)
    found = evidence.ImportanceWeighting(400, progress=False).estimate(model, guide, X[:4])
    each = dist.Normal(0.0, 5.0**0.5).log_prob(X[:4])
    assert found.per_datum.value.shape == (4,)
    assert torch.allclose(found.per_datum.value.sort()[0], each.sort()[0], atol=0.05)
    assert float(found.value) == pytest.approx(3 * float(each.sum()), abs=0.2)
    assert float(found.standard_error) > 1


class OfThePosterior:
    """The evidence with the posterior as guide, which is exact."""

    def estimate(self, model, guide, *args):
        return evidence.ImportanceWeighting(2, progress=False).estimate(model, guide_of_z, *args)


def too_low(x):
    with pyro.plate("d", 12, subsample_size=len(x)):
        pyro.sample("z", dist.Normal(0.6 * x, 0.8**0.5))


def gap_of(guide, x):
    return diagnostics.evidence_gap(
        by_arguments, guide, x, estimator=OfThePosterior(), num_samples=10, progress=False
    )


def test_the_gap_of_a_given_minibatch_has_no_error_of_the_data_that_both_sides_see():
    assert float(gap_of(guide_of_z, X[:4]).standard_error) < 1e-6


def test_the_error_of_the_gap_of_a_given_minibatch_is_how_far_it_is_off():
    pyro.set_rng_seed(0)
    exact = ((0.2 * X) ** 2 / (2 * 0.8)).sum()
    found = [gap_of(too_low, X[torch.randperm(12)[:9]]) for _ in range(60)]
    off = [(gap.value - exact).square() - gap.standard_error.square() for gap in found]
    assert_mean(torch.stack(off), torch.zeros(()))


def test_gaps_of_data_in_different_plates_are_no_gaps():
    def in_another_plate(x):
        with pyro.plate("e", 12):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    one = evidence.ImportanceWeighting(10, progress=False)
    sides = [
        one.estimate(in_another_plate, poutine.block(in_another_plate, hide=["x"]), X),
        one.estimate(by_arguments, guide_of_z, X),
    ]
    gap = diagnostics.EvidenceGapEstimate(*sides)
    with pytest.raises(ValueError, match=r"of data in the plates \('e',\), the ELBO in \('d',\)"):
        _ = gap.per_datum


def test_a_given_minibatch_with_a_shared_latent_is_refused_also_where_it_is_reparameterised():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("d", 12, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(mu, 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", dist.Normal(0.0, 0.5))
        with pyro.plate("d", 12, subsample_size=len(x)):
            pyro.sample("z_decentered", dist.Normal(0.4 * x, 0.2**0.5))

    model = poutine.reparam(model, {"z": LocScaleReparam(0.0)})
    with pytest.raises(UnsupportedSiteError, match="cannot be reached"):
        evidence.ImportanceWeighting(50, progress=False).estimate(model, guide, X[:4])


@pytest.mark.parametrize("likelihood", ["equal data", "factor"])
def test_data_are_reached_by_indices_that_only_densities_depend_on(likelihood):
    y = torch.zeros(12)

    def model(x):
        with pyro.plate("d", 12, subsample_size=5) as i:
            z = pyro.sample("z", dist.Normal(x[i], 1.0))
            if likelihood == "factor":
                pyro.factor("y", dist.Normal(z, 1.0).log_prob(y[i]))
            else:
                pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    def guide(x):
        with pyro.plate("d", 12, subsample_size=5) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, 0.5**0.5))

    exact = dist.Normal(X, 2.0**0.5).log_prob(y)
    found = evidence.ImportanceWeighting(20, progress=False).estimate(model, guide, X)
    assert torch.allclose(found.per_datum.value, exact, atol=1e-4)
    gap = diagnostics.evidence_gap(model, guide, X, num_samples=20, progress=False)
    assert abs(float(gap.value)) < 1e-3


def simulated(x):
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_reparameterised_latent_is_no_datum_of_a_simulation(seed):
    model = poutine.reparam(simulated, {"z": LocScaleReparam(0.0)})
    annealing = evidence.AnnealedImportance(100, num_temperatures=100, start="prior")
    bidirectional = evidence.BidirectionalMonteCarlo(annealing)
    pyro.set_rng_seed(seed)
    interval = bidirectional.estimate(model, None, torch.tensor(0.3))
    assert list(interval.data) == ["x"]
    exact = dist.Normal(0.0, 5.0**0.5).log_prob(interval.data["x"])
    assert interval.contains(exact, num_standard_errors=5)


def test_a_fit_to_simulated_data_sees_a_reparameterised_latent():
    model = poutine.reparam(simulated, {"z": LocScaleReparam(0.0)})
    seen = []

    def guide(x):
        pyro.sample("z_decentered", dist.Normal(0.4 * x, 0.2**0.5))

    def refit(model, guide, *args):
        densities = [
            poutine.trace(poutine.condition(model, {"z_decentered": torch.tensor(value)}))
            .get_trace(*args)
            .nodes["x"]["fn"]
            .loc
            for value in (-1.0, 1.0)
        ]
        seen.append(densities)
        return guide

    pyro.set_rng_seed(0)
    found = diagnostics.sbc(
        model, guide, torch.tensor(0.3), refit=refit, num_simulations=10, num_samples=10,
        progress=False,
    )  # fmt: skip
    assert found.names == ("z_decentered",)
    assert all(low == -2.0 and high == 2.0 for low, high in seen)


def partly_seen(x, seen):
    with pyro.plate("d", 4):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(4), 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=seen)


def guess_where_seen(x, seen):
    with pyro.plate("d", 4):
        mu = pyro.sample("mu", dist.Normal(torch.where(seen, x / 2, 0.0), 1 / (1.0 + seen) ** 0.5))
        nonsense = torch.where(seen, 50.0, mu)
        pyro.sample("x_unobserved", dist.Normal(nonsense, 1.0))


@pytest.mark.parametrize("measure", [diagnostics.sbc, diagnostics.vsbc])
def test_what_a_mask_hides_is_not_calibrated(measure):
    seen = torch.tensor([True, False, True, True])
    pyro.set_rng_seed(0)
    found = measure(
        partly_seen,
        guess_where_seen,
        torch.zeros(4),
        seen,
        arguments=lambda data: ((data["x_observed"], seen), {}),
        progress=False,
    )
    assert found.names == ("mu[0]", "mu[1]", "mu[2]", "mu[3]", "x_unobserved[1]")
    assert found.probabilities.shape == (100, 5)
    assert found.p_values.min() > FAILURE_BUDGET / MAX_COMPARISONS


def test_nothing_is_calibrated_where_masks_hide_it_all():
    def model(x):
        with pyro.plate("d", 2), poutine.mask(mask=False):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("d", 2), poutine.mask(mask=False):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="masks hide every latent"):
        diagnostics.sbc(model, guide, torch.zeros(2), progress=False)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(1), nn.Dropout(0.5))
        self.net[0].running_mean.fill_(1.0)

    def forward(self, x):
        mean = 0.5 * self.net(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean, 0.7))


def plated(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def annealed(model, guide, x):
    annealing = evidence.AnnealedImportance(50, num_temperatures=30, start="guide")
    return evidence.BidirectionalMonteCarlo(annealing).estimate(model, guide, x).lower.value


MEASURES = {
    "bidirectional": annealed,
    "khat": lambda *program: diagnostics.khat(*program, num_samples=100, progress=False).joint.ess,
    "amortisation": lambda *program: (
        diagnostics.amortisation_gap(
            *program, num_samples=50, num_steps=5, progress=False
        ).approximation
    ),
    "report": lambda *program: diagnostics.guide_report(
        *program, num_samples=50, progress=False
    ).collapse.kl.sum(),
    "rate": lambda *program: (
        diagnostics.rate_distortion(
            lambda elbo: (*program[:2], program[2:]), [1.0], progress=False
        ).rate
    ),
    "vsbc": lambda *program: diagnostics.vsbc(
        *program, num_simulations=10, progress=False
    ).probabilities.sum(),
}


@pytest.mark.parametrize("name", MEASURES)
def test_what_is_measured_of_a_guide_in_training_is_what_it_is_at_rest(name):
    x, found = torch.linspace(-2.0, 2.0, 6), []
    for training in (True, False):
        guide = Encoder().train(training)
        before = {key: value.clone() for key, value in guide.state_dict().items()}
        pyro.set_rng_seed(0)
        found.append(torch.as_tensor(MEASURES[name](plated, guide, x)))
        assert guide.training == training
        assert all(torch.equal(before[key], value) for key, value in guide.state_dict().items())
    assert torch.equal(*found)


def test_annealing_leaves_what_a_mask_hides_where_it_is():
    mask = torch.tensor([True, False, True, True])
    x = torch.tensor([1.0, 2.0, 0.5, 3.0])

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.LogNormal(mu, 1.0), obs=x, obs_mask=mask)

    seen, logs = x[mask], x[mask].log()
    cov = torch.eye(3) + torch.ones(3, 3)
    exact = dist.MultivariateNormal(torch.zeros(3), cov).log_prob(logs) - logs.sum()
    assert len(seen) == 3
    pyro.set_rng_seed(0)
    annealing = evidence.AnnealedImportance(300, num_temperatures=200, start="prior")
    found = annealing.estimate(model, None, x)
    assert abs(float(found.value - exact)) < 5 * float(found.standard_error)
    assert float(found.standard_error) < 0.02


def test_large_log_weights_of_few_digits_have_a_tail():
    generator = torch.Generator().manual_seed(0)
    tail = -torch.rand(1_000, generator=generator).log()  # weights 1 / u: k = 1
    near, far = tail.float(), (tail - 140_000.0).float()
    assert psis_khat(far.numpy()) == pytest.approx(psis_khat(near.numpy()), abs=0.1)
    rounded = torch.full((1_000,), -140_000.0, dtype=torch.float32)
    rounded[::3] += 0.03125  # two units of the last place
    assert "all weights are equal" in str(why_no_khat(rounded.numpy()))


def normal(x):
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


def learnt(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(-2.0)), 0.7))


def trained(callbacks, num_steps=20, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = SVI(normal, learnt, pyro.optim.Adam({"lr": 0.1}), TraceKL_ELBO())
    x = torch.tensor(2.0)
    return fit(svi, x, num_steps=num_steps, callbacks=callbacks, progress=False, **options)


def test_a_callback_that_is_used_again_begins_anew():
    held_out = EvaluateOn(torch.tensor(1.0), every=5)
    stop = EarlyStopping(on=held_out)
    variance = GradientVariance(every=10, num_samples=3)
    track = TrackEvidence(
        evidence.ImportanceWeighting(20, progress=False), 10, normal, learnt, torch.tensor(2.0)
    )
    seen = []
    for _ in range(2):
        trained([held_out, stop, variance, track])
        seen.append(
            (
                held_out.history["step"].tolist(),
                held_out.history["elbo"].tolist(),
                list(variance.steps),
                dict(variance.variance),
                list(track.steps),
                track.gap.tolist(),
            )
        )
    assert seen[0] == seen[1]
    assert seen[0][0] == [5.0, 10.0, 15.0, 20.0]


def test_a_callback_keeps_what_it_has_where_a_run_is_resumed(tmp_path):
    held_out, path = EvaluateOn(torch.tensor(1.0), every=5), tmp_path / "run.ckpt"
    trained([held_out, Checkpoint(path)], num_steps=10)
    trained([held_out, Checkpoint(path)], resume=path)
    assert held_out.history["step"].tolist() == [5.0, 10.0, 15.0, 20.0]


def test_a_checkpoint_that_is_used_again_writes_again(tmp_path):
    checkpoint = Checkpoint(tmp_path / "run.ckpt", every=100)
    trained([checkpoint])
    (tmp_path / "run.ckpt").unlink()
    trained([checkpoint])
    assert (tmp_path / "run.ckpt").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"scale_tril": [0.3, 0.4]},
        {"covariance_matrix": [0.09, 0.16]},
        {"precision_matrix": [1 / 0.09, 1 / 0.16]},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_normal_of_any_matrix_can_be_fitted_datum_by_datum(given):
    x = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
    matrix = {name: torch.diag(torch.tensor(values)) for name, values in given.items()}

    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.MultivariateNormal(x / 2, **matrix))

    pyro.set_rng_seed(0)
    parts = diagnostics.amortisation_gap(model, guide, x, num_steps=200, progress=False)
    variances = torch.tensor([0.09, 0.16])
    exact = (2 * variances - 1 - (2 * variances).log()).sum()  # of two data, each half
    assert abs(float(parts.approximation)) < 0.05
    assert float(parts.amortisation) == pytest.approx(float(exact), abs=0.15)
    assert math.isfinite(float(parts.amortisation_error))


def test_a_rate_that_its_schedule_moves_goes_on_for_a_parameter_that_a_resumed_step_misses(
    tmp_path,
):
    def guide(x):
        loc = pyro.param(f"loc {int(x > 0)}", torch.tensor(0.0))
        pyro.sample("z", dist.Normal(loc, 0.7))

    def run(num_steps, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        scheduler = pyro.optim.ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5},
            {"clip_norm": 10.0},
        )
        rate = LearningRate(scheduler)
        svi = SVI(normal, guide, scheduler, TraceKL_ELBO())
        callbacks = [rate, Checkpoint(tmp_path / "run.ckpt")]
        batches = torch.tensor([-1.0, 1.0])
        fit(
            svi,
            batches=batches,
            num_steps=num_steps,
            callbacks=callbacks,
            progress=False,
            **options,
        )
        return {name: value.clone() for name, value in pyro.get_param_store().items()}

    whole = run(8)
    for cut in (3, 4, 5):
        run(cut)
        assert run(8, resume=tmp_path / "run.ckpt") == whole


def test_ranks_of_samples_that_are_mixed_up_are_refused():
    def model(x):
        with pyro.plate("d", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)
        pyro.sample("b", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("d", 3):
            a = pyro.sample("a", dist.Normal(x / 2, 0.5**0.5))
        pyro.sample("b", dist.Normal(0.1 * a.sum(), 1.0))

    with pytest.raises(UnsupportedSiteError, match="count dims from the right"):
        diagnostics.vsbc(model, guide, torch.zeros(3), num_simulations=10, progress=False)


def test_every_observed_site_is_to_be_found_in_the_arguments():
    def model(x, y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=y.log())

    def guide(x, y):
        pyro.sample("z", dist.Normal((x + y.log()) / 3, 3**-0.5))

    with pytest.raises(ValueError, match="equals what 'y' observes"):
        diagnostics.vsbc(
            model, guide, torch.tensor(0.3), torch.tensor(2.0), num_simulations=10, progress=False
        )


def test_a_point_that_is_off_by_rounding_alone_mixes_nothing_up():
    torch.set_default_dtype(torch.float32)

    def model(counts):
        with pyro.plate("d", 7):
            p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
            pyro.sample("c", dist.Multinomial(10, p), obs=counts)

    pyro.set_rng_seed(0)
    counts = dist.Multinomial(10, torch.tensor([0.2, 0.3, 0.5])).sample((7,))
    guide = AutoNormal(model, init_scale=0.4)
    guide(counts)
    for seed in range(6):
        pyro.set_rng_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            evidence.ImportanceWeighting(20, progress=False).estimate(model, guide, counts)


def test_the_amortisation_of_a_model_that_mixes_samples_is_fitted_one_by_one():
    def model(x):
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            first = z[0] if z.dim() == 1 else z[0, 0]
            pyro.sample("x", dist.Normal(z + 0.0 * first, 1.0), obs=x)
            pyro.factor("mixed", -((z - z[0]) ** 2).sum() * (z.dim() > 1))

    def guide(x):
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(0.3 * x, 0.7))

    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match="one by one"):
        parts = diagnostics.amortisation_gap(
            model, guide, torch.tensor([3.0, -2.0]), num_samples=200, num_steps=400, progress=False
        )
    assert abs(float(parts.approximation)) < 0.2
    assert float(parts.amortisation) == pytest.approx(13 * 0.04, abs=0.25)


def test_data_that_are_coupled_at_seldom_values_alone_are_found_to_be():
    x = torch.tensor([0.3, -0.5, 0.1, 0.4])

    def model(x):
        with pyro.plate("d", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            above = z.max(-1, keepdim=True)[0] > 1.8
            pyro.sample("x", dist.Normal(z + 2.0 * above, 1.0), obs=x)

    def guide(x):
        with pyro.plate("d", 4):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = []
    for seed in range(10):
        pyro.set_rng_seed(seed)
        estimate = evidence.ImportanceWeighting(20, progress=False).estimate(model, guide, x)
        found.append(estimate.per_datum is None)
    assert sum(found) > 5


def test_annealing_without_a_latent_says_so():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match="no latent to move.*ImportanceWeighting"):
        evidence.AnnealedImportance(10, num_temperatures=3, start="prior").estimate(model, None)


def test_annealing_from_an_improper_prior_says_so():
    def model():
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(UnsupportedSiteError, match="'z'.*improper.*start='guide'"):
        evidence.AnnealedImportance(10, num_temperatures=3, start="prior").estimate(model, None)


@pytest.mark.parametrize("size, full_size", [(0, 5), (6, 5), (-1, 5)])
def test_a_minibatch_has_some_of_the_data(size, full_size):
    with pytest.raises(ValueError, match=f"'data' must have from 1 to all 5 data, not {size}"):
        evidence.Minibatch("data", 0, size, full_size)


@pytest.mark.parametrize("values, errors", [(3, 3), (4, 3)])
def test_a_minibatch_has_an_error_for_each_datum(values, errors):
    with pytest.raises(ValueError, match="a minibatch of 4 data of plate 'data' has as many"):
        evidence.Minibatch("data", 0, 4, 9).standard_error(torch.ones(values), torch.ones(errors))

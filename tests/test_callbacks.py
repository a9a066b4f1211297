"""Callbacks: gradients, learning rates, TensorBoard."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import SGD, Adam, ExponentialLR, ReduceLROnPlateau

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, fit
from pyro_elbo.training import ClipGradients, GradientVariance, LearningRate, TensorBoard

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5))


def train(callbacks, optim=None, loss=None, num_steps=6):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    svi = SVI(model, guide, optim or SGD({"lr": 1.0}), loss or TraceKL_ELBO())
    history = fit(svi, X, num_steps=num_steps, callbacks=callbacks, progress=False)
    return history, pyro.param("loc").detach().clone()


def test_the_gradient_keeps_its_direction_and_has_the_norm():
    _, free = train([], num_steps=1)
    clip = ClipGradients(0.25)
    _, clipped = train([clip], num_steps=1)
    assert torch.allclose(clipped, free * 0.25 / free.norm(), rtol=1e-5)
    assert clip.num_clipped == 1
    wide = ClipGradients(1e6)
    _, same = train([wide], num_steps=1)
    assert torch.equal(same, free) and wide.num_clipped == 0


def test_gradients_are_clipped_while_fit_runs_and_no_longer():
    clip, loss = ClipGradients(1e-9), TraceKL_ELBO()
    train([clip], loss=loss, num_steps=2)
    before = pyro.param("loc").detach().clone()
    SVI(model, guide, SGD({"lr": 1.0}), loss).step(X)
    assert (pyro.param("loc") - before).norm() > 1e-3


def test_the_variance_of_the_gradient_is_that_of_the_estimator():
    """The gradient at z = loc + e / 2 is 2 z - x: a variance of 1 for each datum."""
    noise = GradientVariance(every=3, num_samples=400)
    loss = TraceGap_ELBO()
    _, loc = train([noise], loss=loss)
    _, without = train([], loss=TraceGap_ELBO())
    assert torch.equal(loc, without) and loss.step_count == 6
    assert noise.steps == [3, 6] and list(noise.variance) == ["loc"]
    for found in noise.variance["loc"]:
        assert abs(found - 3.0) < 6 * 3.0 * math.sqrt(2 / (3 * 399))
    kl = GradientVariance(every=6, num_samples=2)
    train([kl])
    assert kl.variance["loc"][0] > 0


def test_measuring_it_leaves_the_terms_and_the_baselines_of_training():
    def labelled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def labels(x):
        decaying = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))), infer=decaying)

    found = []
    for callbacks in ([], [GradientVariance(every=1, num_samples=3)]):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        svi, seen = SVI(labelled, labels, SGD({"lr": 1.0}), TraceKL_ELBO()), []
        callbacks.append(lambda run, seen=seen: seen.append(float(run.terms.elbo)))
        history = fit(svi, X, num_steps=5, callbacks=callbacks, progress=False)
        assert seen == history["elbo"].tolist()
        found.append((seen, {k: v.tolist() for k, v in pyro.get_param_store().items()}))
    assert found[0] == found[1] and len(found[0][1]) == 2


def test_a_gradient_that_is_not_finite_is_measured_as_nan():
    measured = GradientVariance(every=1, num_samples=2)
    batches = [X, X * math.nan, X]
    svi = SVI(model, guide, SGD({"lr": 0.1}), TraceKL_ELBO(on_nonfinite="skip"))
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="skipped"):
        fit(svi, batches=batches, num_epochs=1, callbacks=[measured], progress=False)
    assert [math.isnan(value) for value in measured.variance["loc"]] == [False, True, False]


def test_the_learning_rate_falls_every_so_many_steps():
    optim = ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0}, "gamma": 0.5})
    train([LearningRate(optim, every=2)], optim=optim, num_steps=5)
    (scheduler,) = optim.optim_objs.values()
    assert scheduler.get_last_lr() == [0.25]


def test_a_plateau_is_judged_on_the_mean_objective():
    told = []
    optim = ReduceLROnPlateau({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}})
    optim.step = told.append
    history, _ = train([LearningRate(optim, every=3, metric=True)], optim=optim)
    assert told == [-history["objective"][:3].mean(), -history["objective"][3:].mean()]


def test_a_plateau_is_not_judged_on_a_nan():
    optim = ReduceLROnPlateau(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "patience": 0, "factor": 0.5}
    )
    svi = SVI(model, guide, optim, TraceKL_ELBO(on_nonfinite="skip"))
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    batches = [X, X * math.nan, X * math.nan, X / 2]
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="skipped"):
        callbacks = [LearningRate(optim, every=1, metric=True)]
        fit(svi, batches=batches, num_epochs=1, callbacks=callbacks, progress=False)
    assert optim.get_state()["loc"]["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_the_latest_steps_are_as_many_as_asked_for():
    seen = []
    train([lambda run: seen.append([run.latest(n)["step"].tolist() for n in (0, 1, 2, 9)])])
    assert seen[0] == [[], [1], [1], [1]]
    assert seen[4] == [[], [5], [4, 5], [1, 2, 3, 4, 5]]


def test_every_column_is_written_with_its_step():
    written, flushed = [], []

    class Writer:
        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

        def flush(self):
            flushed.append(True)

    history, _ = train([TensorBoard(Writer(), every=4, prefix="train/")])
    assert {step for *_, step in written} == {4} and flushed == [True]
    values = {tag: value for tag, value, _ in written}
    assert values["train/elbo"] == history["elbo"][3] and "train/kl:z" in values
    assert "train/step" not in values


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: ClipGradients(0.0), ValueError, "max_norm"),
        (lambda: ClipGradients(math.nan), ValueError, "max_norm"),
        (lambda: GradientVariance(every=0), ValueError, "every"),
        (lambda: GradientVariance(num_samples=1), ValueError, "num_samples"),
        (lambda: LearningRate(Adam({})), TypeError, "is no scheduler"),
        (lambda: TensorBoard("folder"), TypeError, "add_scalar"),
        (lambda: train([ClipGradients(1.0)], loss=Trace_ELBO()), TypeError, "clip_args"),
    ],
)
def test_bad_input_is_said(build, error, match):
    with pytest.raises(error, match=match):
        build()

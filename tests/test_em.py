"""Variational EM: its steps, when the schedule moves, and what is refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from em_programs import X, em, guide, model, moved_by, values
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.optim import Adam, ExponentialLR
from pyro.poutine.guide import GuideMessenger
from support import LOSSES

from pyro_elbo import NonFiniteError, TraceKL_ELBO, fit, schedules
from pyro_elbo.steppers import UntilConverged
from pyro_elbo.training import Checkpoint, ClipGradients


def by_hand(loss, num_steps, e_steps, m_steps):
    """The same with torch's optimisers."""
    loss.decompose(model, guide, X)
    leaves = {name: pyro.param(name).unconstrained() for name in values()}
    sides = [[leaves["slope"], leaves["width"]], [leaves["mu"], leaves["scale"]]]
    optims = [torch.optim.Adam(side, lr=0.1) for side in sides]
    for _ in range(num_steps):
        for optim, moves in zip(optims, (e_steps, m_steps), strict=True):
            for _ in range(moves):
                for leaf in leaves.values():
                    leaf.grad = None
                with loss.hold():
                    loss.loss_and_grads(model, guide, X)
                optim.step()
        loss.advance()


@pytest.mark.parametrize("cls", LOSSES)
def test_it_is_the_loop_that_one_would_write(cls):
    found = []
    for hand in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = cls(beta=schedules.Linear(4.0, 1.0, num_steps=4))
        stepper = em((Adam({"lr": 0.1}), Adam({"lr": 0.1})), loss, e_steps=3, m_steps=2)
        loss.decompose(model, guide, X)
        if hand:
            by_hand(loss, 5, 3, 2)
        else:
            stepper.evaluate_loss(X)
            for _ in range(5):
                stepper.step(X)
        found.append((values(), loss.step_count))
    (one, count), (other, same_count) = found
    assert count == same_count == 5
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_schedule_moves_once_a_step_and_not_within():
    seen = []

    class Seeing(TraceKL_ELBO):
        def differentiable_loss(self, *args, **kwargs):
            seen.append(self.beta)
            return super().differentiable_loss(*args, **kwargs)

    loss = Seeing(beta=schedules.Linear(4.0, 1.0, num_steps=3))
    stepper = em(loss=loss, e_steps=3, m_steps=2)
    for _ in range(2):
        stepper.step(X)
    assert seen == [4.0] * 5 + [3.0] * 5
    with pytest.warns(UserWarning, match="schedule"):
        stepper.evaluate_loss(X)
    assert loss.step_count == 2


def test_what_it_returns_is_the_loss_of_its_terms():
    stepper = em((0.001, 0.001), e_steps=2)
    loss = stepper.step(X)
    assert isinstance(loss, float) and loss == -float(stepper.loss.terms.objective)
    assert isinstance(stepper.evaluate_loss(X), float)


@pytest.mark.parametrize("cls", [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_a_loss_of_pyros(cls):
    stepper = em((0.01, 0.01), cls(num_particles=2), e_steps=UntilConverged(window=1, max_steps=3))
    losses = [stepper.step(X) for _ in range(3)]
    assert all(map(math.isfinite, losses))
    assert moved_by({name: torch.zeros(()) for name in values()}) >= {"slope", "mu"}


def test_the_same_seed_gives_the_same_run():
    found = []
    for _ in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        stepper = em((Adam({"lr": 0.1}), Adam({"lr": 0.1})), e_steps=UntilConverged(window=2))
        found.append(([stepper.step(X) for _ in range(3)], values()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_a_nan_moves_nothing():
    bad = torch.tensor([0.5, math.nan, 2.0])
    stepper = em((Adam({"lr": 0.1}), Adam({"lr": 0.1})))
    stepper.step(X)
    before = values()
    with pyro.validation_enabled(False), pytest.raises(NonFiniteError, match="'x'"):
        stepper.step(bad)
    assert not moved_by(before)
    skipping = em(
        (Adam({"lr": 0.1}),) * 2, TraceKL_ELBO(on_nonfinite="skip"), e_steps=UntilConverged()
    )
    skipping.step(X)
    before = values()
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="skipped"):
        assert math.isnan(skipping.step(bad))
    assert not moved_by(before)


def test_schedulers_of_learning_rates():
    decaying = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "gamma": 0.5}
    scheduler = ExponentialLR(decaying)
    stepper = em((scheduler, 0.1))
    stepper.step(X)
    scheduler.step()
    state = scheduler.get_state()["slope"]["optimizer"]
    assert state["param_groups"][0]["lr"] == 0.05


def test_it_trains_in_fit_and_goes_on_from_a_checkpoint(tmp_path):
    found = []
    for stops in ((8,), (5, 8)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        path = tmp_path / f"{len(stops)}.ckpt"
        for i, num_steps in enumerate(stops):
            if i:
                pyro.clear_param_store()
                pyro.set_rng_seed(1)
            history = fit(
                em((Adam({"lr": 0.1}), Adam({"lr": 0.1})), e_steps=2),
                X,
                num_steps=num_steps,
                callbacks=[Checkpoint(path), ClipGradients(1e6)],
                resume=path if i else None,
                progress=False,
            )
        found.append((history["objective"], values()))
    assert (found[0][0] == found[1][0]).all() and len(found[0][0]) == 8
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_parameters_without_a_gradient_are_in_the_checkpoint(tmp_path):
    def with_frozen(x):
        shift = pyro.param("shift", lambda: torch.randn(())).detach()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.zeros(())), 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def one_slope(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.zeros(())) * x, 1.0))

    path, found = tmp_path / "run", []
    for seed, num_steps, resume in ((0, 6, None), (0, 3, None), (1, 6, path)):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        stepper = em((Adam({"lr": 0.1}), Adam({"lr": 0.1})), programs=(with_frozen, one_slope))
        callbacks = [Checkpoint(path)]
        fit(stepper, X, num_steps=num_steps, callbacks=callbacks, resume=resume, progress=False)
        found.append(values())
    whole, _, resumed = found
    assert whole.keys() == resumed.keys() == {"shift", "mu", "slope"}
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_gradient_is_clipped_by_the_norm_of_the_side_that_moves():
    def steep(x):
        mu = pyro.param("mu", torch.zeros(()))
        with pyro.plate("data", 30, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(1e4 * mu + z, 1.0), obs=x)

    def moved(callbacks):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        stepper = em((1e-3, 1e-12), programs=(steep, guide))
        fit(stepper, X, num_steps=1, callbacks=callbacks, progress=False)
        return values()["slope"].item()

    assert moved([ClipGradients(1e3)]) == moved([]) != 0.0


class Bare(GuideMessenger):
    def get_posterior(self, name, prior):
        return dist.Normal(pyro.param("loc", torch.zeros(())), 1.0)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"e_steps": 0}, ValueError, "e_steps must be an integer >= 1, not 0"),
        ({"m_steps": -1}, ValueError, "m_steps must be an integer >= 1, not -1"),
        ({"e_steps": True}, ValueError, "e_steps"),
        ({"e_steps": 1.5}, TypeError, "e_steps must be a number of steps or a stop rule"),
        ({"m_steps": "all"}, TypeError, "m_steps must be a number of steps or a stop rule"),
        ({"m_steps": UntilConverged}, TypeError, "stop rule"),
        ({"optims": (None, 0.1)}, TypeError, "e_optim must be an optimiser of Pyro's"),
        ({"optims": (0.1, torch.optim.Adam)}, TypeError, "m_optim must be an optimiser of Pyro's"),
        ({"loss": TraceKL_ELBO().loss}, TypeError, "loss must be a pyro.infer.ELBO"),
        ({"loss": ReweightedWakeSleep()}, TypeError, "an objective for each side"),
        ({"programs": (model, Bare(model))}, TypeError, "make it a pyro.nn.PyroModule"),
    ],
)
def test_bad_input_is_refused_at_once(kwargs, error, match):
    with pytest.raises(error, match=match):
        em(**kwargs)

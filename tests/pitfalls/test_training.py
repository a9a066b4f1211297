"""Training: what a bare loop loses, and what is kept here."""

from __future__ import annotations

import math
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from support import LOSSES
from torch import nn

from pyro_elbo import NonFiniteError, TraceKL_ELBO, VariationalEM, fit, schedules
from pyro_elbo.elbo.shards import OwnSubsamples
from pyro_elbo.training import Checkpoint, EarlyStopping, RelativeChange, evaluate

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
loss_classes = pytest.mark.parametrize("cls", LOSSES)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)


def guide(x):
    loc, scale = pyro.param("loc", torch.zeros(3)), pyro.param("log_scale", torch.zeros(())).exp()
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale))


def make(loss, guide=guide):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return SVI(model, guide, Adam({"lr": 0.1}), loss)


def leaves():
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


@loss_classes
def test_schedule_longer_than_the_run(cls):
    svi = make(cls(beta=schedules.Linear(4.0, 1.0, num_steps=10)))
    with pytest.warns(UserWarning, match=r"schedule of beta goes on to step 10: it is 2.5 now"):
        history = fit(svi, X, num_steps=5, progress=False)
    assert history["beta"].tolist() == [4.0, 3.7, 3.4, 3.1, pytest.approx(2.8)]


@loss_classes
def test_early_stopping_during_annealing(cls):
    """A warm-up from 0 lowers the objective throughout; the rule sees none of it."""
    svi = make(cls(beta=schedules.Linear(0.0, 4.0, num_steps=60)))
    rule = RelativeChange(tolerance=0.5, window=1, block=10)
    history = fit(svi, X, num_steps=200, callbacks=[EarlyStopping(rule, 10)], progress=False)
    assert rule(history["objective"][:60]) or rule(history["elbo"][:60])
    assert 60 < len(history) < 200 and history.stopped.startswith("early stopping")


def test_checkpoint(tmp_path):
    """Pyro's stores keep parameters alone; a run that goes on from them is another run."""
    fit(make(TraceKL_ELBO()), X, num_steps=10, progress=False)
    whole = leaves()
    svi = make(TraceKL_ELBO())
    fit(svi, X, num_steps=5, progress=False, callbacks=[Checkpoint(tmp_path / "run")])
    pyro.get_param_store().save(tmp_path / "store")
    state = torch.get_rng_state()
    svi = make(TraceKL_ELBO())
    pyro.get_param_store().load(tmp_path / "store")
    torch.set_rng_state(state)
    for _ in range(5):
        svi.step(X)
    assert differ(leaves(), whole)
    fit(make(TraceKL_ELBO()), X, num_steps=10, progress=False, resume=tmp_path / "run")
    assert not differ(leaves(), whole)


def test_evaluate_loss():
    norm = nn.BatchNorm1d(3).double()

    def moving(x):
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(norm(z.expand(2, 3)), 1.0).to_event(2), obs=torch.ones(2, 3))

    svi = SVI(moving, guide, Adam({"lr": 0.1}), TraceKL_ELBO())
    before = norm.running_mean.clone()
    svi.evaluate_loss(X)
    moved = norm.running_mean.clone()
    assert not torch.equal(moved, before)
    evaluate(svi, X)
    assert torch.equal(norm.running_mean, moved) and norm.training


@loss_classes
def test_elbo_of_model_and_guide(cls):
    """Parameters of an AutoGuide are there after one call; a plain function is refused."""
    module = cls()(model, AutoNormal(model))
    assert not list(module.parameters())
    with torch.no_grad():
        module(X)
    assert len(list(module.parameters())) == 2
    with pytest.raises(TypeError, match="needs a guide that is a torch.nn.Module"):
        cls()(model, guide)


@loss_classes
def test_skipping_a_bad_step_in_a_bare_svi_loop(cls):
    """A gradient of 0 still moves Adam; None does not."""
    svi = make(Trace_ELBO())
    svi.step(X)
    before = leaves()
    for parameter in pyro.get_param_store()._params.values():
        parameter.grad = torch.zeros_like(parameter)
    svi.optim(set(pyro.get_param_store()._params.values()))
    assert differ(leaves(), before)
    svi = make(cls(on_nonfinite="skip"))
    svi.step(X)
    before = leaves()
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="skipped"):
        svi.step(X * math.nan)
    assert not differ(leaves(), before)


@loss_classes
def test_gradient_accumulation_lbfgs_closures_em_inner_steps(cls):
    elbo = cls(beta=schedules.Linear(0.0, 1.0, num_steps=10))
    module = elbo(model, auto := AutoNormal(model))
    with torch.no_grad():
        module(X)
    optimiser = torch.optim.LBFGS(auto.parameters(), max_iter=5)

    def closure():
        optimiser.zero_grad()
        torch.manual_seed(0)
        loss = module(X)
        loss.backward()
        return loss

    for step in range(1, 4):
        with elbo.hold():
            optimiser.step(closure)
        elbo.advance()
        assert elbo.step_count == step
    em_loss = cls(beta=schedules.Linear(0.0, 1.0, num_steps=10))
    em = VariationalEM(model, guide, Adam({"lr": 0.1}), Adam({"lr": 0.1}), em_loss, e_steps=3)
    for step in range(1, 4):
        em.step(X)
        assert em_loss.step_count == step


@loss_classes
def test_a_nan(cls):
    """Pyro's step makes every parameter nan; ours names the site and the term, and moves none."""
    svi = make(Trace_ELBO())
    with pyro.validation_enabled(False):
        svi.step(X)
        with pytest.warns(UserWarning):
            svi.step(X * math.nan)
    assert any(value.isnan().any() for value in leaves().values())
    svi = make(cls())
    svi.step(X)
    before = leaves()
    with (
        pyro.validation_enabled(False),
        pytest.raises(NonFiniteError, match="the log likelihood of site 'x' is nan"),
    ):
        svi.step(X * math.nan)
    assert not differ(leaves(), before)


def test_ddp():
    """Workers with one seed draw one subsample; ours draw their own, inside DDP by themselves."""

    def drawn(*handlers):
        pyro.set_rng_seed(0)
        with ExitStack() as stack:
            for handler in handlers:
                stack.enter_context(handler)
            return set(stack.enter_context(pyro.plate("data", 8, subsample_size=4)).tolist())

    assert drawn() == drawn()
    first, second = (drawn(OwnSubsamples(rank, 2)) for rank in range(2))
    assert first | second == set(range(8))

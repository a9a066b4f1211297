"""Evaluation leaves everything as it was."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_elbo import TraceKL_ELBO, fit, schedules
from pyro_elbo.training import EvaluateOn, evaluate

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).double()


class Program:
    def __init__(self):
        layers = (nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        self.decoder = nn.Sequential(*layers).double()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        slope = pyro.param("slope", torch.full((), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[:, :1], 0.7).to_event(1))


def make(**kwargs):
    pyro.set_rng_seed(0)
    program = Program()
    return program, SVI(program.model, program.guide, Adam({"lr": 0.05}), TraceKL_ELBO(**kwargs))


def buffers(program):
    return [buffer.clone() for buffer in program.decoder.buffers()]


def test_it_leaves_everything_as_it_was():
    program, svi = make(beta=schedules.Linear(0.0, 1.0, num_steps=100))
    svi.step(X)
    elbo = svi.loss.__self__
    modes = [module.training for module in program.decoder.modules()]
    program.decoder[3].eval()
    before, state, terms = buffers(program), torch.get_rng_state(), elbo.terms
    evaluate(svi, X)
    assert all(map(torch.equal, before, buffers(program)))
    assert torch.equal(torch.get_rng_state(), state)
    assert elbo.step_count == 1 and elbo.terms is terms
    assert [module.training for module in program.decoder.modules()] == [*modes[:-1], False]
    assert all(p.grad is None or not p.grad.any() for p in program.decoder.parameters())


def test_before_the_first_step_it_leaves_no_parameter():
    def drawn(x):
        width = pyro.param("width", lambda: torch.rand(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(width * x[:, :1], 0.7).to_event(1))

    def first_step(is_evaluated):
        pyro.clear_param_store()
        program, _ = make()
        svi = SVI(program.model, drawn, Adam({"lr": 0.05}), TraceKL_ELBO())
        if is_evaluated:
            evaluate(svi, X)
            assert not list(pyro.get_param_store())
        svi.step(X)
        return pyro.param("width").item()

    assert first_step(False) == first_step(True)


def test_an_autoguide_that_has_not_run_is_refused():
    program, _ = make()
    svi = SVI(program.model, AutoNormal(program.model), Adam({}), TraceKL_ELBO())
    with pytest.raises(ValueError, match="AutoNormal has no parameters before its first step"):
        evaluate(svi, X)


def test_svi_itself_moves_batch_norm():
    """PITFALLS: what this is for."""
    program, svi = make()
    before = buffers(program)
    svi.evaluate_loss(X)
    assert not all(map(torch.equal, before, buffers(program)))


def test_modules_are_in_eval_mode():
    program, svi = make()
    svi.step(X)
    found = evaluate(svi, X)["elbo"][0]
    program.decoder.eval()
    state = torch.get_rng_state()
    elbo = TraceKL_ELBO().decompose(program.model, program.guide, X).elbo
    torch.set_rng_state(state)
    assert found == elbo


def test_they_come_back_after_an_error():
    program, svi = make()
    svi.step(X)
    with pytest.raises(RuntimeError):
        evaluate(svi, X[:, :1].float())
    assert all(module.training for module in program.decoder.modules())
    program.decoder(X[:, :1])


def test_a_row_for_each_batch_and_the_loaders_generator_is_put_back():
    _, svi = make()
    own = torch.Generator().manual_seed(1)
    loader = DataLoader(TensorDataset(X), batch_size=5, shuffle=True, generator=own)
    state = own.get_state()
    found = evaluate(svi, batches=loader)
    assert len(found) == 3 and torch.equal(own.get_state(), state)
    with pytest.raises(ValueError, match="no batch"):
        evaluate(svi, batches=[])


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1.0), ("mean", 0.5)])
def test_held_out_data_are_evaluated_and_training_is_the_same(reduction, factor):
    _, svi = make()
    losses = fit(svi, X, num_steps=6, progress=False)["objective"]
    pyro.clear_param_store()
    _, svi = make()
    held_out = EvaluateOn(batches=[X[:4], X[4:]], every=3, reduction=reduction, seed=5)
    history = fit(svi, X, num_steps=6, callbacks=[held_out], progress=False)
    assert history["objective"].tolist() == losses.tolist()
    found = held_out.history
    assert found["step"].tolist() == [3, 6] and held_out.latest == found["elbo"][-1]
    assert found["beta"].tolist() == [1, 1]
    both = [found[name][-1] for name in ("elbo", "reconstruction", "kl")]
    assert both[0] == pytest.approx(both[1] - both[2])
    pyro.set_rng_seed(5)
    again = EvaluateOn(batches=[X[:4], X[4:]], every=1, seed=5)
    fit(svi, X, num_steps=1, callbacks=[again], progress=False)
    assert factor * again.latest == pytest.approx(held_out.latest, rel=0.5)


@pytest.mark.parametrize("size", [3, 12])
def test_the_numbers_of_one_minibatch_are_said_to_be(size):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=size) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index, 0])

    pyro.clear_param_store()
    svi = SVI(model, AutoNormal(model), Adam({"lr": 0.05}), TraceKL_ELBO())
    svi.step(X)
    with warnings.catch_warnings(record=True, action="always") as said:
        evaluate(svi, X)
        evaluate(svi, batches=[X, X])
    assert [str(one.message)[:44] for one in said] == (
        ["evaluate: plate 'data' has 3 of its 12 data,"] if size < len(X) else []
    )


def test_bad_input_is_said():
    with pytest.raises(ValueError, match="reduction must be one of"):
        EvaluateOn(X, reduction="max")
    with pytest.raises(ValueError, match="every"):
        EvaluateOn(X, every=0)
    with pytest.raises(RuntimeError, match="nothing was evaluated yet"):
        EvaluateOn(X).latest  # noqa: B018
    with pytest.raises(TypeError, match="takes a stepper, .* and no function"):
        evaluate(lambda x: None, X)

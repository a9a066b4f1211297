"""Early stopping: on which values, when, and how it resumes."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyro_elbo import TraceKL_ELBO, fit, schedules
from pyro_elbo.schedules import ends_at
from pyro_elbo.training import Checkpoint, EarlyStopping, EvaluateOn, Plateau, RelativeChange

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.5**0.5))


def make(loss=None, lr=0.02):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return SVI(model, guide, Adam({"lr": lr}), loss or TraceKL_ELBO())


def quiet(svi, callbacks, num_steps, **kwargs):
    return fit(svi, X, num_steps=num_steps, callbacks=callbacks, progress=False, **kwargs)


class Recording:
    """A rule that keeps what it is given, and stops at a length."""

    def __init__(self, length=math.inf):
        self.length, self.given = length, []

    def __call__(self, values):
        self.given.append(values)
        return "long enough" if len(values) >= self.length else None


def test_it_stops_where_the_bound_is_at_its_maximum():
    """The guide's family holds the posterior, so that the gap is 0 there."""
    loss = TraceKL_ELBO(num_particles=10, vectorize_particles=True)
    rule = Plateau(min_gain=0.1, horizon=100, first=300)
    history = quiet(make(loss), [EarlyStopping(rule)], 20_000)
    assert 300 <= len(history) < 20_000
    assert history.stopped.startswith(f"early stopping at step {len(history)}: a gain of ")
    loc = pyro.param("loc").detach()
    assert ((loc - X / 2) ** 2).sum() < 0.1


def test_the_values_are_the_true_elbo_of_each_step():
    rule = Recording()
    history = quiet(make(TraceKL_ELBO(beta=3.0)), [EarlyStopping(rule, every=4)], 10)
    assert [len(values) for values in rule.given] == [4, 8]
    assert rule.given[1].tolist() == history["elbo"][:8].tolist()
    assert rule.given[1].tolist() != history["objective"][:8].tolist()


@pytest.mark.parametrize(
    "beta",
    [
        schedules.Linear(4.0, 1.0, num_steps=25),
        {"z": schedules.Cyclical(0.0, 1.0, period=5, num_cycles=5)},
        schedules.Piecewise([(0, 0.0), (25, 1.0)]),
        schedules.Linear(4.0, 1.0, num_steps=20),
    ],
)
def test_nothing_of_the_annealing_is_seen(beta):
    """A rule that stops at once stops at the first look after the schedule."""
    rule = Recording(length=1)
    history = quiet(make(TraceKL_ELBO(beta=beta)), [EarlyStopping(rule, every=10)], 100)
    assert len(history) == 30 and len(rule.given) == 1
    end = ends_at(beta["z"] if isinstance(beta, dict) else beta)
    assert rule.given[0].tolist() == history["elbo"][end:].tolist()
    assert set(history["beta"][end:]) == {1.0} != set(history["beta"][end - 1 :])


def test_it_never_stops_while_the_schedule_goes_on():
    """PITFALLS: stops on a loss that the schedule moves."""
    svi = make(TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=60)))
    with pytest.warns(UserWarning, match="training ended at step 50"):
        history = quiet(svi, [EarlyStopping(Recording(length=0), every=1)], 50)
    assert len(history) == 50 and not history.stopped


def test_values_of_ones_own_are_not_taken_while_the_schedule_goes_on():
    taken = []
    stopping = EarlyStopping(Recording(), every=10, on=lambda run: taken.append(run.step) or 0.0)
    quiet(make(TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=25))), [stopping], 50)
    assert taken == [30, 40, 50]


@pytest.mark.parametrize("beta", [schedules.Cyclical(0.0, 1.0, period=5), lambda step: 1.0])
def test_a_schedule_without_an_end_is_refused_before_the_first_step(beta):
    with pytest.raises(ValueError, match="schedule of beta does not say when it ends"):
        quiet(make(TraceKL_ELBO(beta=beta)), [EarlyStopping()], 10)
    assert not list(pyro.get_param_store())


def test_a_loss_without_terms_is_refused_but_for_other_values():
    with pytest.raises(TypeError, match="the stepper's loss has no terms"):
        quiet(make(Trace_ELBO()), [EarlyStopping()], 10)
    assert not list(pyro.get_param_store())
    rule = Recording(length=3)
    objective = EarlyStopping(rule, every=2, on=lambda run: run.latest(2)["objective"].mean())
    history = quiet(make(Trace_ELBO()), [objective], 10)
    assert history.stopped == "early stopping at step 6: long enough"
    assert rule.given[-1].tolist() == history["objective"].reshape(3, 2).mean(1).tolist()


@pytest.mark.parametrize("is_before", [True, False])
def test_held_out_values_are_those_after_the_schedule(is_before):
    rule, held_out = Recording(), EvaluateOn(X + 1, every=5)
    svi = make(TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=15)))
    stopping = EarlyStopping(rule, every=10, on=held_out)
    callbacks = [held_out, stopping] if is_before else [stopping, held_out]
    quiet(svi, callbacks, 41)
    expected = held_out.history["elbo"][3:8]
    assert held_out.history["step"][3:8].tolist() == [20, 25, 30, 35, 40]
    assert rule.given[-1].tolist() == expected[: 5 if is_before else 4].tolist()


def test_held_out_data_that_are_never_evaluated_are_said():
    held_out = EvaluateOn(X, every=5)
    with pytest.warns(UserWarning, match="nothing to judge: .* was never evaluated. Make it a"):
        quiet(make(), [EarlyStopping(every=5, on=held_out)], 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(make(), [held_out, EarlyStopping(every=5, on=held_out)], 10)


def test_a_step_without_a_finite_elbo_is_left_out():
    rule = Recording()
    svi = make(TraceKL_ELBO(on_nonfinite="skip"))
    batches = [X, X * math.nan, X, X]
    with pyro.validation_enabled(False), pytest.warns(UserWarning):
        fit(
            svi,
            batches=batches,
            num_epochs=1,
            callbacks=[EarlyStopping(rule, every=4)],
            progress=False,
        )
    assert len(rule.given[0]) == 3 and np.isfinite(rule.given[0]).all()


class KilledError(RuntimeError):
    pass


@pytest.mark.parametrize("killed_at", [3, 17, 28, 33])
def test_a_resumed_run_stops_where_the_other_did(tmp_path, killed_at):
    path = tmp_path / "run.ckpt"

    def kill(run):
        if run.step == killed_at:
            raise KilledError

    def train(callbacks, **kwargs):
        held_out = EvaluateOn(X + 1, every=3)
        rules = [Recording(20), Recording(60)]
        stopping = [EarlyStopping(rules[0], every=7), EarlyStopping(rules[1], 5, on=held_out)]
        svi = make(TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=18)))
        history = quiet(svi, [held_out, *stopping, *callbacks], 100, **kwargs)
        return history, [rule.given[-1].tolist() for rule in rules]

    whole, values = train([])
    with pytest.raises(KilledError):
        train([Checkpoint(path, every=killed_at), kill])
    resumed, again = train([], resume=path)
    assert len(whole) == 42 and whole.stopped == resumed.stopped
    assert whole["elbo"].tolist() == resumed["elbo"].tolist()
    assert values == again


def test_another_run_begins_another_stream():
    rule = Recording()
    stopping = EarlyStopping(rule, every=5)
    for _ in range(2):
        quiet(make(), [stopping], 5)
    assert [len(values) for values in rule.given] == [5, 5]


def test_training_is_as_without_it():
    def train(callbacks):
        quiet(make(), callbacks, 20)
        return pyro.param("loc").detach().clone(), torch.get_rng_state()

    with_it, without = train([EarlyStopping(RelativeChange(1e-9), every=3)]), train([])
    assert all(torch.equal(one, other) for one, other in zip(with_it, without, strict=True))


@pytest.mark.parametrize("rule", ["plateau", 3, Plateau, True])
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(TypeError, match="rule must be a callable of the values so far"):
        EarlyStopping(rule)


def test_a_rule_that_gives_no_reason_is_refused():
    with pytest.raises(TypeError, match="must return a string or None, not True"):
        quiet(make(), [EarlyStopping(lambda values: True, every=1)], 5)


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_bad_intervals(every):
    with pytest.raises(ValueError, match="every must be an integer >= 1"):
        EarlyStopping(every=every)


def test_values_that_are_none_are_refused():
    with pytest.raises(TypeError, match="on must be an EvaluateOn or a callable"):
        EarlyStopping(on=torch.zeros(3))

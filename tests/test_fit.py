"""The loop: what it feeds, what it remembers, how it ends, what it refuses."""

import math
import signal
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from support import LOSSES
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyro_elbo import StopTraining, TraceKL_ELBO, fit, schedules

X = torch.tensor([0.5, -1.0, 2.0, 0.1, 1.3], dtype=torch.float64)
loss_classes = pytest.mark.parametrize("cls", LOSSES)


def model(x, shift=0.0):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def guide(x, shift=0.0):
    loc, log_scale = pyro.param("a", torch.zeros(())), pyro.param("b", torch.zeros(()))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc * x, log_scale.exp()))


def make(loss=None):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return SVI(model, guide, Adam({"lr": 0.05}), loss or TraceKL_ELBO())


def leaves():
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def assert_same_leaves(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def quiet(*args, **kwargs):
    return fit(*args, progress=False, **kwargs)


@loss_classes
def test_it_does_what_a_bare_loop_does(cls):
    """Parameters, generators and the schedule, bit for bit; and each row is the step's terms."""
    bare = make(cls(beta=schedules.Linear(0.0, 1.0, num_steps=5)))
    rows = []
    for _ in range(7):
        loss = bare.step(X)
        terms = bare.loss.__self__.terms
        rows.append((-loss, terms.elbo, terms.kl, terms.entropy, terms.weighted_kl, terms.beta))
    expected, state = leaves(), torch.get_rng_state()
    svi = make(cls(beta=schedules.Linear(0.0, 1.0, num_steps=5)))
    history = quiet(svi, X, num_steps=7)
    assert_same_leaves(leaves(), expected)
    assert torch.equal(torch.get_rng_state(), state)
    names = ("objective", "elbo", "kl", "entropy", "weighted_kl", "beta")
    for i, row in enumerate(rows):
        assert [history[name][i] for name in names] == [float(value) for value in row]
        assert history.kl_by_site["z"][i] == float(row[2])
    assert history["step"].tolist() == list(range(1, 8))
    assert (history["seconds"] > 0).all() and not history.stopped
    assert (history["num_data"] == len(X)).all()


def test_the_views_of_a_row_agree():
    history = quiet(make(), X, num_steps=5)
    ulps = 16 * torch.finfo(torch.float64).eps * abs(history["expected_log_joint"]).max()
    assert history["elbo"] == pytest.approx(history["reconstruction"] - history["kl"], abs=ulps)
    joint = history["expected_log_joint"] + history["entropy"]
    assert history["elbo"] == pytest.approx(joint, abs=ulps)


def test_a_loss_of_pyros_own_has_its_objective_alone():
    history = quiet(make(Trace_ELBO()), X, num_steps=3)
    svi = make(Trace_ELBO())
    assert history["objective"].tolist() == [-svi.step(X) for _ in range(3)]
    assert "elbo" not in history.columns


class Recording:
    """A stepper that takes anything."""

    loss = None

    def __init__(self):
        self.given = []

    def step(self, *args, **kwargs):
        self.given.append((args, kwargs))
        return 1.0


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ((1, 2), ((1, 2), {"k": 0})),
        ([1, 2], ((1, 2), {"k": 0})),
        ({"x": 1}, ((), {"x": 1, "k": 0})),
        (7, ((7,), {"k": 0})),
    ],
)
def test_a_batch_is_spread(batch, given):
    stepper = Recording()
    quiet(stepper, batches=[batch], num_epochs=1, k=0)
    assert stepper.given == [given]


def test_epochs_and_steps_are_counted():
    history = quiet(Recording(), batches=[1, 2, 3], num_epochs=2)
    assert history["epoch"].tolist() == [0, 0, 0, 1, 1, 1]
    history = quiet(Recording(), batches=[1, 2, 3], num_steps=4)
    assert history["epoch"].tolist() == [0, 0, 0, 1]
    history = quiet(Recording(), batches=[1, 2, 3], num_steps=4, num_epochs=1)
    assert len(history) == 3
    assert quiet(Recording(), 1, num_epochs=2)["epoch"].tolist() == [0, 1]


def test_a_loader_is_shuffled_anew_in_each_epoch():
    stepper = Recording()
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, shuffle=True)
    quiet(stepper, batches=loader, num_epochs=2)
    values = torch.cat([args[0] for args, _ in stepper.given])
    assert values[:6].tolist() != values[6:].tolist()
    assert sorted(values[:6].tolist()) == sorted(values[6:].tolist()) == list(range(6))


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self):
        yield from torch.arange(6.0)


def test_a_loader_of_a_stream_has_no_length():
    history = quiet(Recording(), batches=DataLoader(Stream(), batch_size=2), num_epochs=2)
    assert history["epoch"].tolist() == [0, 0, 0, 1, 1, 1]


def test_a_distributed_sampler_is_told_the_epoch():
    loader = DataLoader(TensorDataset(torch.arange(4)), batch_size=2)
    epochs = []
    loader.sampler.set_epoch = epochs.append
    quiet(Recording(), batches=loader, num_epochs=2)
    assert epochs == [0, 1]


def test_callbacks_are_called_in_order_and_told_the_beginning_and_the_end():
    calls = []

    class Watch:
        def start(self, run):
            calls.append(("start", run.step))

        def __call__(self, run):
            calls.append((run.step, run.epoch, run.batch, run.args, dict(run.kwargs)))
            assert run.terms.elbo == run.history["elbo"][-1]
            assert len(run.history) == run.step

        def finish(self, run):
            calls.append(("finish", run.step))

    quiet(make(), X, num_steps=2, callbacks=[Watch()], shift=0.5)
    seen = [(*call[:3], *call[4:]) for call in calls[1:3]]
    assert seen == [(1, 0, 1, {"shift": 0.5}), (2, 1, 1, {"shift": 0.5})]
    assert calls[0] == ("start", 0) and calls[-1] == ("finish", 2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, StopTraining("it is enough")])
def test_an_early_end_returns_the_history_so_far(error):
    finished = []

    class Ending:
        def __call__(self, run):
            if run.step == 3:
                raise error

        def finish(self, run):
            finished.append(run.step)

    is_ctrl_c = error is KeyboardInterrupt
    says = pytest.warns(UserWarning, match="interrupted after step 3 of 9, by Ctrl-C")
    with says if is_ctrl_c else nullcontext():
        history = quiet(make(), X, num_steps=9, callbacks=[Ending()])
    assert len(history) == 3 and finished == [3]
    expected = "interrupted after step 3" if is_ctrl_c else "it is enough"
    assert history.stopped == expected and str(history).endswith(f"stopped: {expected}")


@pytest.fixture
def ctrl_c():
    """Ctrl-C does what it does in a terminal, also where a shell has had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_end_of_the_step():
    class Interrupted(Recording):
        def step(self, *args):
            if len(self.given) == 2:
                signal.raise_signal(signal.SIGINT)
            return super().step(*args)

    stepper = Interrupted()
    with pytest.warns(UserWarning, match="interrupted after step 3 of 9, by Ctrl-C"):
        history = quiet(stepper, 1, num_steps=9)
    assert len(history) == len(stepper.given) == 3
    assert history.stopped == "interrupted after step 3"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_does_not_wait():
    class Stuck(Recording):
        def step(self, *args):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(UserWarning, match="interrupted after step 0 of 9, by Ctrl-C"):
        assert len(quiet(Stuck(), 1, num_steps=9)) == 0


def test_a_callback_can_stop_training_through_the_run():
    history = quiet(make(), X, num_steps=9, callbacks=[lambda run: run.step < 2 or run.stop("now")])
    assert len(history) == 2 and history.stopped == "now"


def test_a_loss_that_stops_at_a_nan_ends_with_the_history():
    svi = make(TraceKL_ELBO(on_nonfinite="stop"))
    batches = [X, X, X * math.nan]
    with pyro.validation_enabled(False):
        history = quiet(svi, batches=batches, num_epochs=1)
    assert len(history) == 2 and "site 'x'" in history.stopped
    assert all(leaf.isfinite() for leaf in leaves().values())


def test_any_other_error_passes_and_callbacks_are_finished():
    finished = []

    class Failing:
        def __call__(self, run):
            raise RuntimeError("mine")

        def finish(self, run):
            finished.append(run.step)

    with pytest.raises(RuntimeError, match="mine"):
        quiet(make(), X, num_steps=9, callbacks=[Failing()])
    assert finished == [1]


def test_a_schedule_unfinished_at_the_end_is_said():
    """PITFALLS: the model silently stays at another weight."""
    svi = make(TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=10)))
    with pytest.warns(UserWarning, match=r"ended at step 4, .* goes on to step 10: it is 0.4"):
        quiet(svi, X, num_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet(svi, X, num_steps=6)


def test_sites_that_come_and_go_have_columns_with_gaps():
    def sometimes(x, has_w):
        if has_w:
            pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        model(x)

    def guide_sometimes(x, has_w):
        if has_w:
            pyro.sample("w", dist.Normal(torch.ones(()), 1.0))
        guide(x)

    svi = SVI(sometimes, guide_sometimes, Adam({"lr": 0.1}), TraceKL_ELBO())
    history = quiet(svi, batches=[(X, False), (X, True), (X, False)], num_epochs=1)
    assert [math.isnan(value) for value in history.kl_by_site["w"]] == [True, False, True]
    assert history.kl_by_site["w"][1] == 0.5


def test_weights_by_site_have_columns_of_their_own():
    def two(x):
        pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        model(x)

    def guide_two(x):
        pyro.sample("w", dist.Normal(torch.ones(()), 1.0))
        guide(x)

    svi = SVI(two, guide_two, Adam({"lr": 0.1}), TraceKL_ELBO(beta={"w": 0.5, "z": 2.0}))
    history = quiet(svi, X, num_steps=2)
    assert math.isnan(history["beta"][0])
    assert {name: b.tolist() for name, b in history.beta_by_site.items()} == {
        "z": [2.0, 2.0],
        "w": [0.5, 0.5],
    }


def test_weights_by_site_are_there_where_they_meet():
    def two(x):
        pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
        model(x)

    def guide_two(x):
        pyro.sample("w", dist.Normal(torch.ones(()), 1.0))
        guide(x)

    beta = {"w": 1.0, "z": schedules.Linear(0.0, 1.0, num_steps=2)}
    history = quiet(SVI(two, guide_two, Adam({"lr": 0.1}), TraceKL_ELBO(beta=beta)), X, num_steps=4)
    assert np.array_equal(history["beta"], [np.nan, np.nan, 1.0, 1.0], equal_nan=True)
    assert history.beta_by_site["z"].tolist() == [0.0, 0.5, 1.0, 1.0]
    assert history.beta_by_site["w"].tolist() == [1.0] * 4


class Told:
    """A callback that keeps what it is told, and may fail at it."""

    def __init__(self, told, name, fails_at=None):
        self.told, self.name, self.fails_at = told, name, fails_at

    def _tell(self, what):
        self.told.append(f"{what} {self.name}")
        if self.fails_at == what:
            raise RuntimeError(self.name)

    def start(self, run):
        self._tell("start")

    def __call__(self, run):
        self._tell("step")

    def finish(self, run):
        self._tell("finish")


@pytest.mark.parametrize(
    ("fails_at", "told"),
    [
        ("start", ["start a", "start b", "finish a"]),
        ("step", ["start a", "start b", "start c", "step a", "step b", "finish c", "finish b"]),
        ("finish", ["start a", "start b", "start c", "step a", "step b", "step c", "finish c"]),
    ],
)
def test_all_that_were_started_are_finished(fails_at, told):
    heard = []
    callbacks = [Told(heard, "a"), Told(heard, "b", fails_at), Told(heard, "c")]
    with pytest.raises(RuntimeError, match="b"):
        quiet(Recording(), num_steps=1, callbacks=callbacks)
    assert heard[: len(told)] == told and heard[-1] == "finish a"


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({}, ValueError, "say when to end"),
        ({"num_steps": 0}, ValueError, "num_steps must be an integer >= 1"),
        ({"num_epochs": 1.5}, ValueError, "num_epochs must be an integer >= 1"),
        ({"batches": [], "num_epochs": 1}, ValueError, "no batch in epoch 0"),
        ({"num_steps": 1, "callbacks": [Told]}, TypeError, "not the class"),
        ({"num_steps": 1, "callbacks": [3]}, TypeError, "3 cannot: pass a function"),
        ({"num_steps": 1, "callbacks": print}, TypeError, "a list of callables"),
        ({"batches": 3, "num_epochs": 1}, TypeError, "must be iterable"),
        ({"batches": (x for x in [X]), "num_epochs": 2}, ValueError, "once, .* not a generator"),
        ({"batches": [{"k": 1}], "num_epochs": 1, "k": 2}, TypeError, r"\['k'\] are in the batch"),
        ({"batches": [X, X.float()], "num_epochs": 1}, ValueError, "batch 2 of epoch 0 .*float32"),
    ],
)
def test_bad_input_is_said(kwargs, error, match):
    with pytest.raises(error, match=match):
        quiet(Recording(), **kwargs)


def test_arguments_and_batches_together_are_refused():
    with pytest.raises(TypeError, match="come from each batch"):
        quiet(make(), X, batches=[X], num_steps=1)


def test_what_takes_no_steps_is_refused():
    with pytest.raises(TypeError, match=r"something with \.step"):
        quiet(TraceKL_ELBO(), X, num_steps=1)


def test_the_bar_says_where_training_stands(capsys, monkeypatch):
    module = sys.modules["pyro_elbo.training.fit"]
    monkeypatch.setattr(module, "BAR_SECONDS", 0.0)
    monkeypatch.setattr(module, "BAR_DELAY", 0.0)
    fit(make(), X, num_steps=3)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("3/3", "objective", "ELBO", "rec.", "KL", "β 1"))
    quiet(make(), X, num_steps=3)
    assert capsys.readouterr().err == ""

"""Checkpoints: what they hold, that they are safe to read, and what is refused."""

import random
import subprocess
import sys
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam, ClippedAdam, ExponentialLR, MultiStepLR
from torch import nn
from torch.distributions import constraints

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO, evidence, fit, schedules
from pyro_elbo.training import Checkpoint, ClipGradients, EvaluateOn, TrackEvidence
from pyro_elbo.training.checkpoint import read_checkpoint
from pyro_elbo.training.constraints import decode, encode

X = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
SCRIPT = Path(__file__).parent / "kill_and_resume.py"


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale))


def make(model=model, guide=guide, optim=None, loss=None):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    return SVI(model, guide, optim or Adam({"lr": 0.05}), loss or TraceKL_ELBO())


def quiet(*args, **kwargs):
    return fit(*args, progress=False, **kwargs)


def leaves():
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def killed_and_resumed(*arguments):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "same", done.stderr


@pytest.mark.parametrize(
    ("kind", "moments"),
    [("svi", ["13", "write:20"]), pytest.param("em", ["22"], marks=pytest.mark.slow)],
)
def test_a_killed_run_resumes_bit_for_bit(kind, moments):
    killed_and_resumed(kind, *moments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["svi", "em"])
def test_a_run_killed_anywhere_resumes_bit_for_bit(kind):
    """Other moments each time; the one that fails is named."""
    steps, writes = random.sample(range(1, 40), 8), random.sample(range(5, 40, 5), 3)
    killed_and_resumed(kind, *map(str, steps), *(f"write:{step}" for step in writes))


OPTIMS = {
    "adam": lambda: Adam({"lr": 0.05}),
    "clipped": lambda: ClippedAdam({"lr": 0.05, "lrd": 0.9}),
    "exponential": lambda: ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
    ),
    "multi-step": lambda: MultiStepLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05}, "milestones": [3, 6]}
    ),
}


@pytest.mark.parametrize("name", OPTIMS)
def test_every_optimiser_goes_on_where_it_was(name, tmp_path):
    def callbacks(optim):
        scheduled = [lambda run: optim.step()] if hasattr(optim, "step") else []
        return [Checkpoint(tmp_path / "run", every=1000), *scheduled]

    whole = OPTIMS[name]()
    history = quiet(make(optim=whole), X, num_steps=10, callbacks=callbacks(whole))
    expected = leaves()
    first = OPTIMS[name]()
    quiet(make(optim=first), X, num_steps=5, callbacks=callbacks(first))
    second = OPTIMS[name]()
    resumed = quiet(
        make(optim=second),
        X,
        num_steps=10,
        callbacks=callbacks(second),
        resume=tmp_path / "run",
    )
    assert all(torch.equal(leaves()[key], expected[key]) for key in expected)
    assert resumed["elbo"].tolist() == history["elbo"].tolist()


def test_an_autoguide_and_the_schedule_go_on(tmp_path):
    def build():
        loss = TraceGap_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=8))
        return make(guide=AutoNormal(model), loss=loss)

    quiet(build(), X, num_steps=10)
    expected = leaves()
    with pytest.warns(UserWarning, match="goes on to step 8"):
        quiet(build(), X, num_steps=5, callbacks=[Checkpoint(tmp_path / "run")])
    svi = build()
    history = quiet(svi, X, num_steps=10, resume=tmp_path / "run")
    assert all(torch.equal(leaves()[key], expected[key]) for key in expected)
    assert history["beta"].tolist() == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1]


def test_a_decaying_baseline_goes_on(tmp_path):
    def labelled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def labels(x):
        decaying = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.zeros(3))), infer=decaying)

    quiet(make(labelled, labels), X, num_steps=9)
    expected = leaves()
    path = tmp_path / "run"
    quiet(make(labelled, labels), X, num_steps=5, callbacks=[Checkpoint(path)])
    quiet(make(labelled, labels), X, num_steps=9, resume=path)
    assert len(expected) == 2 and leaves().keys() == expected.keys()
    assert all(torch.equal(leaves()[key], expected[key]) for key in expected)


def test_callbacks_go_on(tmp_path):
    def slope(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("a", torch.zeros(())) * x, 0.7))

    def all_of():
        method = evidence.ImportanceWeighting(50, progress=False)
        track = TrackEvidence(method, 3, model, slope, X)
        return [EvaluateOn(X[:2], every=2), track, ClipGradients(1e-3)]

    whole = all_of()
    quiet(make(guide=slope), X, num_steps=9, callbacks=whole)
    expected = leaves()
    path = tmp_path / "run"
    quiet(make(guide=slope), X, num_steps=5, callbacks=[*all_of(), Checkpoint(path)])
    resumed = all_of()
    quiet(make(guide=slope), X, num_steps=9, callbacks=resumed, resume=path)
    assert torch.equal(leaves()["a"], expected["a"])
    assert resumed[0].history["elbo"].tolist() == whole[0].history["elbo"].tolist()
    assert torch.equal(resumed[1].gap, whole[1].gap) and resumed[1].steps == [3, 6, 9]
    assert resumed[2].num_clipped == whole[2].num_clipped > 0
    with pytest.raises(ValueError, match="the states of the callbacks"):
        quiet(make(guide=slope), X, num_steps=9, resume=path)


def test_nothing_but_data_is_in_the_file(tmp_path):
    quiet(make(), X, num_steps=2, callbacks=[Checkpoint(tmp_path / "run")])
    content = torch.load(tmp_path / "run", weights_only=True)
    assert sorted(content["params"]) == ["loc", "scale"]
    assert content["step"] == 2 and content["version"] == 1


def test_parameters_that_have_not_appeared_yet_come_back(tmp_path):
    def rare(x):
        if pyro.param("count", torch.zeros(()), constraint=constraints.interval(-1.0, 1.0)) > 2:
            raise AssertionError
        if torch.rand(()) < 0.5:
            pyro.param("rare", torch.ones(2), constraint=constraints.interval(0.0, 3.0))
        guide(x)

    optim = Adam({"lr": 0.05})
    quiet(make(guide=rare, optim=optim), X, num_steps=20, callbacks=[Checkpoint(tmp_path / "run")])
    expected, state = pyro.param("rare").detach().clone(), optim.get_state()
    svi = make(guide=guide)
    with pytest.warns(UserWarning, match="of step 20 already.* those before it included"):
        quiet(svi, X, num_steps=20, resume=tmp_path / "run")
    assert torch.equal(pyro.param("rare"), expected)
    kept = svi.optim._state_waiting_to_be_consumed
    assert kept["rare"].keys() == state["rare"].keys()


def another(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("other", torch.zeros(())), 1.0))


def longer(x):
    loc = pyro.param("loc", torch.zeros(5))
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc[: len(x)], scale))


@pytest.mark.parametrize(
    ("guide", "match"),
    [
        (another, r"parameters \['other'\] that the checkpoint lacks .*\['loc', 'scale'\]"),
        (longer, r"parameter 'loc' is \(3,\), torch.float64 in the checkpoint and \(5,\)"),
    ],
)
def test_a_checkpoint_of_another_program_is_refused(guide, match, tmp_path):
    quiet(make(), X, num_steps=2, callbacks=[Checkpoint(tmp_path / "run")])
    svi = make(guide=guide)
    svi.step(X)
    before, state = leaves(), torch.get_rng_state()
    with pytest.raises(ValueError, match=match):
        quiet(svi, X, num_steps=9, resume=tmp_path / "run")
    assert all(torch.equal(leaves()[name], before[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)
    assert svi.loss.__self__.step_count == 1


def test_another_optimiser_is_refused(tmp_path):
    adam, sgd = pyro.optim.Adam({"lr": 0.1}), pyro.optim.SGD({"lr": 0.1})
    quiet(make(optim=adam), X, num_steps=2, callbacks=[Checkpoint(tmp_path / "run")])
    svi = make(optim=sgd)
    svi.step(X)
    before = leaves()
    with pytest.raises(ValueError, match="'optim' of the checkpoint is Adam, here it is SGD"):
        quiet(svi, X, num_steps=9, resume=tmp_path / "run")
    assert all(torch.equal(leaves()[name], before[name]) for name in before)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "run"
    quiet(make(), X, num_steps=2, callbacks=[Checkpoint(path)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no checkpoint, or was cut off"):
        quiet(make(), X, num_steps=9, resume=path)
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match="is no checkpoint of pyro_elbo"):
        read_checkpoint(path)
    torch.save({"format": "pyro_elbo checkpoint", "version": 99}, path)
    with pytest.raises(ValueError, match="version 99; this package reads 1"):
        read_checkpoint(path)
    torch.save(Checkpoint, path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        read_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none")


def test_a_place_that_cannot_be_written_is_said_before_the_first_step(tmp_path):
    svi = make()
    for path, match in ((tmp_path, "is a folder"), (tmp_path / "no" / "run", "there is no folder")):
        with pytest.raises(OSError, match=match):
            quiet(svi, X, num_steps=2, callbacks=[Checkpoint(path)])
    assert not leaves()


def test_a_failed_write_leaves_the_file(tmp_path, monkeypatch):
    path = tmp_path / "run"
    quiet(make(), X, num_steps=2, callbacks=[Checkpoint(path)])
    whole = path.read_bytes()

    def failing(content, file):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="no space"):
        quiet(make(), X, num_steps=2, callbacks=[Checkpoint(path)])
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1


def test_a_step_that_was_broken_off_is_not_written(tmp_path):
    path = tmp_path / "run"

    class Broken(SVI):
        def step(self, x):
            if self.loss.__self__.step_count == 3:
                pyro.param("loc").unconstrained().data += 1.0
                raise RuntimeError("broken off")
            return super().step(x)

    make()
    svi = Broken(model, guide, Adam({"lr": 0.05}), TraceKL_ELBO())
    with pytest.raises(RuntimeError, match="broken off"):
        quiet(svi, X, num_steps=9, callbacks=[Checkpoint(path, every=2)])
    assert read_checkpoint(path)["step"] == 2


def test_a_run_that_stops_at_a_nan_goes_on_before_it(tmp_path):
    path = tmp_path / "run"
    svi = make(loss=TraceKL_ELBO(on_nonfinite="stop"))
    with pyro.validation_enabled(False):
        history = quiet(
            svi, batches=[X, X * float("nan")], num_epochs=1, callbacks=[Checkpoint(path)]
        )
    assert history.stopped and read_checkpoint(path)["place"] == [0, 1]
    again = quiet(make(), batches=[X, X], num_epochs=1, resume=path)
    assert len(again) == 2


def test_modules_are_given_by_name_again(tmp_path):
    net = nn.BatchNorm1d(1)
    checkpoint = Checkpoint(tmp_path / "run", modules={"net": net})
    quiet(make(), X, num_steps=2, callbacks=[checkpoint])
    with pytest.raises(ValueError, match=r"modules \['net'\], here are \[\]; .*modules="):
        quiet(make(), X, num_steps=9, resume=tmp_path / "run")


def test_module_local_parameters_are_refused(tmp_path):
    with (
        pyro.settings.context(module_local_params=True),
        pytest.raises(ValueError, match="module_local_params"),
    ):
        svi = make(guide=AutoNormal(model))
        quiet(svi, X, num_steps=2, callbacks=[Checkpoint(tmp_path / "run")])


@pytest.mark.parametrize(
    "constraint",
    [
        constraints.real,
        constraints.positive,
        constraints.interval(-1.0, 2.5),
        constraints.greater_than(torch.tensor(2.0)),
        constraints.simplex,
        constraints.lower_cholesky,
        constraints.independent(constraints.unit_interval, 2),
        dist.constraints.softplus_positive,
        dist.constraints.softplus_lower_cholesky,
        dist.constraints.ordered_vector,
        dist.constraints.unit_lower_cholesky,
    ],
)
def test_constraints_are_data(constraint):
    again = decode(encode(constraint))
    assert type(again) is type(constraint) and repr(again) == repr(constraint)
    value = torch.distributions.transform_to(again)(torch.full((3, 3), 0.3))
    assert torch.equal(value, torch.distributions.transform_to(constraint)(torch.full((3, 3), 0.3)))


def test_no_other_class_is_made_of_data():
    for data in ({"module": "os", "class": "x"}, {"module": encode(constraints.real)["module"]}):
        with pytest.raises(ValueError, match="constraint"):
            decode({"class": "Tensor", "state": {}, **data})
    with pytest.raises(ValueError, match="is no constraint of torch or Pyro"):
        encode(object())


def test_every_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every must be >= 1"):
        Checkpoint(tmp_path / "run", every=0)


def test_a_run_with_another_objective_is_told(tmp_path):
    path = tmp_path / "run"
    loss = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=2))
    quiet(make(loss=loss), X, num_steps=4, callbacks=[Checkpoint(path)])
    same = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=2))
    quiet(make(loss=same), X, num_steps=5, resume=path)
    for other in (TraceGap_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=2)), TraceKL_ELBO()):
        with pytest.warns(UserWarning, match="the loss TraceKL_ELBO.beta=Linear.* goes on with"):
            quiet(make(loss=other), X, num_steps=5, resume=path)


def test_a_first_run_has_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="leave resume= out of a first run"):
        quiet(make(), X, num_steps=2, resume=tmp_path / "none")

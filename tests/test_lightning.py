"""Lightning trains with the losses: terms, schedule, checkpoints, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule
from support import assert_close
from torch import nn

from pyro_elbo import NonFiniteError, TraceGap_ELBO, TraceKL_ELBO, schedules
from pyro_elbo.elbo.baselines import averages

pytest.importorskip("lightning")
import lightning_programs as programs
from lightning.pytorch import LightningDataModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning_programs import DATA, SIZE, loader, module, sgd, trainer
from torch.utils.data import DataLoader, IterableDataset

from pyro_elbo.training.lightning import LightningELBO
from pyro_elbo.training.loaders import ResumableLoader

TESTS = Path(__file__).parent
NO_VALIDATION = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
pytestmark = [
    NO_VALIDATION,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def equal(first, second):
    """Whether all that two runs left behind is the same, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


def script(what, folder):
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, TESTS / "lightning_programs.py", what, folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_logged_terms_are_those_of_the_loss():
    made, metrics = module(AutoDelta, sgd), programs.Metrics()
    run = trainer(max_epochs=3, callbacks=[metrics], enable_checkpointing=False)
    run.fit(made, loader(SIZE), loader())
    terms = made.elbo.decompose(programs.model, made.loss.guide, DATA)
    for name in ("elbo", "kl", "reconstruction"):
        assert_close(run.callback_metrics[f"val_{name}"], getattr(terms, name))
    assert [step["train_beta"] for step in metrics.steps] == [4.0, 3.625, 3.25]
    for step in metrics.steps:
        weighted = step["train_beta"] * step["train_kl"]
        assert step["train_weighted_kl"] == pytest.approx(weighted, rel=1e-14)


def test_weights_by_site_are_logged_by_site():
    elbo = TraceKL_ELBO(beta={"mu": 2.0})
    made = LightningELBO(programs.model, AutoNormal(programs.model), elbo, sgd)
    run = trainer(max_epochs=1)
    run.fit(made, loader())
    assert run.callback_metrics["train_beta_mu"] == 2.0
    assert run.callback_metrics["train_beta_*"] == 1.0


def test_training_is_that_of_a_loop_by_hand():
    made = module(AutoDelta, sgd)
    trainer(max_epochs=4).fit(made, loader())
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoDelta(programs.model)
    loss = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=8))(programs.model, guide)
    with torch.no_grad():
        loss(DATA[:4])
    optimizer = sgd(loss.parameters())
    for _ in range(4):
        for x in loader():
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()
    assert equal(list(made.parameters()), list(loss.parameters()))


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, max_iter=4)


@pytest.mark.parametrize(
    ("kwargs", "optim", "steps"),
    [
        pytest.param({"accumulate_grad_batches": 3}, sgd, 2, id="accumulation"),
        pytest.param({"accumulate_grad_batches": 2}, sgd, 4, id="accumulation with a rest"),
        pytest.param({}, lbfgs, 6, id="closures"),
    ],
)
def test_the_schedule_counts_optimiser_steps(kwargs, optim, steps):
    made = module(optim=optim)
    run = trainer(max_epochs=2, **kwargs)
    run.fit(made, loader(), loader())
    assert made.elbo.step_count == run.global_step == steps


class Normalised(PyroModule):
    """Has statistics that a forward in train mode would move."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        means = self.norm(x[:, None]).squeeze(-1)
        with pyro.plate("data", SIZE, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(means, 1.0))


def normalised(x):
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_evaluation_and_initialisation_are_in_eval_mode():
    elbo = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=8))
    made = LightningELBO(normalised, Normalised(), elbo, sgd, example=DATA)
    run = trainer()
    run.validate(made, loader(), verbose=False)
    run.test(made, loader(), verbose=False)
    norm = made.loss.guide.norm
    assert int(norm.num_batches_tracked) == 0
    assert elbo.step_count == 0 and all(part.training for part in made.modules())
    trainer(max_epochs=1).fit(made, loader(), loader())
    assert int(norm.num_batches_tracked) == elbo.step_count == 3


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([{"x": x} for x in DATA], batch_size=4)

    def predict_dataloader(self):
        return loader()


def test_batches_may_be_mappings_or_tuples_and_come_from_a_datamodule():
    made = module()
    trainer(max_epochs=1).fit(made, datamodule=Data())
    assert made.elbo.step_count == 3
    assert len(list(made.parameters())) == 2
    pairs = torch.utils.data.TensorDataset(DATA)
    other = module()
    trainer(max_epochs=1).fit(other, DataLoader(pairs, batch_size=4))
    assert other.elbo.step_count == 3


def test_predict_gives_the_loss_of_each_batch():
    losses = trainer().predict(module(AutoDelta), datamodule=Data())
    assert len(losses) == 3 and all(loss.dim() == 0 for loss in losses)


def test_mixed_precision_keeps_the_parameters():
    torch.set_default_dtype(torch.float32)
    network = Normalised()
    network.norm = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    made = LightningELBO(normalised, network, TraceKL_ELBO(), sgd)
    run = trainer(max_epochs=2, precision="bf16-mixed")
    run.fit(made, DataLoader(DATA.float(), batch_size=4))
    assert run.callback_metrics["train_elbo"].isfinite()
    assert {p.dtype for p in made.parameters()} == {torch.float32}


class StopError(Exception):
    pass


class StopAt(programs.Kill):
    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise StopError


def assert_resumes(folder, step, epochs=5, **kwargs):
    whole = programs.saved_run(folder / "whole", epochs=epochs, **kwargs)
    part = folder / "part"
    with pytest.raises(StopError):
        programs.saved_run(part, epochs=epochs, extra=[StopAt(step)], **kwargs)
    resumed = programs.saved_run(part, epochs=epochs, resume=part / "last.ckpt", seed=9, **kwargs)
    assert equal(resumed, whole)
    return whole["step_count"]


@pytest.mark.parametrize("validate", [False, True], ids=["", "with validation"])
@pytest.mark.parametrize("step", [6, 15])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, step, validate):
    assert assert_resumes(tmp_path, step, validate=validate) == 30


@pytest.mark.parametrize(("step", "every"), [(4, 2), (7, 2), (6, 3), (9, 3), (13, 3)])
def test_and_from_the_midst_of_an_epoch(tmp_path, step, every):
    assert assert_resumes(tmp_path, step, epochs=3, every=every) == 18


@pytest.mark.parametrize("step", [4, 5, 7])
def test_and_where_epochs_are_cut_short(tmp_path, step):
    assert assert_resumes(tmp_path, step, epochs=3, every=2, limit_train_batches=4) == 12


def test_and_where_the_loader_has_a_generator_of_its_own(tmp_path):
    def generator():
        return {"generator": torch.Generator().manual_seed(3)}

    assert assert_resumes(tmp_path, 9, epochs=3, every=3, own=generator) == 18
    assert assert_resumes(tmp_path / "epoch's end", 6, epochs=3, every=6, own=generator) == 18


class Labels(PyroModule):
    """A score function with a decaying baseline, which Pyro keeps outside of every module."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        decaying = {"baseline": {"use_decaying_avg_baseline": True}}
        pyro.sample("z", dist.Bernoulli(logits=self.logits), infer=decaying)


def labelled(x):
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("step", [4, 7, 13])
def test_and_where_a_validation_follows_the_checkpoint(tmp_path, step):
    assert assert_resumes(tmp_path, step, epochs=3, every=3, validate=True) == 18


def test_validation_does_not_move_training(tmp_path):
    one, other = (
        programs.saved_run(tmp_path / str(validate), epochs=2, validate=validate)
        for validate in (False, True)
    )
    assert equal(one, other)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "the data have no batch"),
        (iter([DATA[:4], DATA[4:8]]), "gone through once .* example=batch"),
    ],
    ids=["empty", "generator"],
)
def test_data_that_cannot_make_the_parameters(data, match):
    with pytest.raises(ValueError, match=match):
        trainer(max_epochs=1).fit(module(), data)


class Stream(IterableDataset):
    def __iter__(self):
        yield from DATA


def test_a_stream_has_no_position():
    with pytest.raises(ValueError, match="needs a dataset with a length"):
        ResumableLoader(Stream(), batch_size=2)


def trained_on(data, policy, plugins=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceKL_ELBO(on_nonfinite=policy)
    made = LightningELBO(programs.model, AutoDelta(programs.model), elbo, sgd, example=DATA[:4])
    run = trainer(max_epochs=1, plugins=plugins)
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        run.fit(made, DataLoader(data, batch_size=4))
    return [p.item() for p in made.parameters()]


@pytest.mark.parametrize(("policy", "taken"), [("skip", [0, 2]), ("stop", [0])])
def test_a_batch_that_is_refused_moves_nothing(policy, taken):
    bad = DATA.clone()
    bad[5] = torch.nan
    good = torch.cat([DATA.split(4)[i] for i in taken])
    assert trained_on(bad, policy) == trained_on(good, policy) != trained_on(DATA[4:8], policy)


def test_a_scaler_of_gradients_takes_a_step_that_is_skipped():
    bad = DATA.clone()
    bad[5] = torch.nan
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    found = trained_on(bad, "skip", [scaled])
    assert torch.tensor(found).isfinite().all()


def decaying_run(epochs, resume=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    made = LightningELBO(labelled, Labels(), TraceKL_ELBO(), sgd)
    run = trainer(max_epochs=epochs)
    run.fit(made, loader(), ckpt_path=resume)
    return run, [v.item() for v in (*made.parameters(), *averages().values())]


def test_a_decaying_baseline_goes_on(tmp_path):
    whole = decaying_run(4)[-1]
    decaying_run(2)[0].save_checkpoint(tmp_path / "run.ckpt")
    assert decaying_run(4, resume=tmp_path / "run.ckpt")[-1] == whole and len(whole) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("step", "every"), [(8, None), (16, 3)])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, step, every):
    whole = programs.saved_run(tmp_path / "whole", every=every)
    part = tmp_path / "part"
    assert script(f"{step},{every or 0}", part).returncode == -signal.SIGKILL
    resumed = programs.saved_run(part, resume=part / "last.ckpt", seed=9, every=every)
    assert equal(resumed, whole)


@pytest.mark.slow
def test_two_ranks_log_the_terms_of_one_process_and_resume(tmp_path):
    ended = script("two_ranks", tmp_path)
    assert ended.returncode == 0, ended.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    metrics, made = programs.Metrics(), module(AutoDelta, sgd)
    run = trainer(max_epochs=5, callbacks=[metrics], enable_checkpointing=False)
    run.fit(made, loader(SIZE), loader(SIZE))
    one = programs.final(made, run)
    for rank in ranks:
        for step, alone in zip(rank["terms"]["steps"], metrics.steps, strict=True):
            assert step == pytest.approx(alone, rel=1e-13)
        assert_close(rank["terms"]["final"]["parameters"][0], one["parameters"][0])
        assert equal(rank["resumed"], rank["whole"])
    first, second = (rank["whole"] for rank in ranks)
    assert equal(first["parameters"], second["parameters"])
    assert not equal(first["next"], second["next"])


def checkpoint(tmp_path):
    programs.saved_run(tmp_path, epochs=1)
    return tmp_path / "last.ckpt"


def test_a_checkpoint_holds_nothing_that_needs_trust(tmp_path):
    state = torch.load(checkpoint(tmp_path), weights_only=True)
    assert state["state_dict"]["loss._extra_state"] == {"step_count": 6}
    assert len(state["pyro_elbo_random_states"]) == 1


def test_weights_of_an_autoguide_load_with_an_example(tmp_path):
    path = checkpoint(tmp_path)
    pyro.clear_param_store()
    parts = {
        "model": programs.model,
        "guide": AutoNormal(programs.model),
        "elbo": TraceKL_ELBO(),
        "optim": sgd,
    }
    made = LightningELBO.load_from_checkpoint(path, **parts, example=DATA)
    after = torch.load(path)["state_dict"]
    assert made.elbo.step_count == 6
    assert all(torch.equal(p, after[name]) for name, p in made.named_parameters())
    trainer(max_epochs=1).fit(made, loader())
    assert made.elbo.step_count == 9


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_checkpoint_of_more_ranks_has_no_random_state_for_this_one(tmp_path):
    path = checkpoint(tmp_path)
    state = torch.load(path)
    state["pyro_elbo_random_states"] *= 2
    torch.save(state, path)
    with pytest.warns(UserWarning, match="of 2 processes, and there are 1"):
        trainer(max_epochs=1).fit(module(), loader(), ckpt_path=path)


def plain_guide(x):
    pyro.sample("mu", dist.Delta(pyro.param("mu_loc", torch.tensor(0.0))))


def with_param(x):
    loc = pyro.param("prior_loc", torch.tensor(0.0))
    mu = pyro.sample("mu", dist.Normal(loc, 1.0))
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_plain_functions_with_parameters_are_refused():
    with pytest.raises(TypeError, match="write it as a pyro.nn.PyroModule"):
        LightningELBO(programs.model, plain_guide, TraceKL_ELBO(), sgd)
    made = LightningELBO(with_param, AutoNormal(with_param), TraceKL_ELBO(), sgd)
    with pytest.raises(ValueError, match="'prior_loc' belongs to no module"):
        trainer(max_epochs=1).fit(made, loader())


def test_other_losses_and_optimisers_are_refused():
    guide = AutoNormal(programs.model)
    with pytest.raises(TypeError, match="one of the losses of pyro_elbo, not Trace_ELBO"):
        LightningELBO(programs.model, guide, Trace_ELBO(), sgd)
    with pytest.raises(TypeError, match="optim must be a callable"):
        LightningELBO(programs.model, guide, TraceKL_ELBO(), "adam")


def test_sharded_parameters_are_refused():
    made = module()
    made.trainer = SimpleNamespace(strategy=FSDPStrategy(), world_size=2)
    with pytest.raises(ValueError, match="FSDPStrategy is not supported"):
        made.setup("fit")


def test_skipping_on_one_rank_is_refused():
    elbo = TraceKL_ELBO(on_nonfinite="skip")
    made = LightningELBO(programs.model, AutoNormal(programs.model), elbo, sgd)
    strategy = trainer(strategy="ddp", devices=2).strategy
    made.trainer = SimpleNamespace(strategy=strategy, world_size=2)
    with pytest.raises(ValueError, match="on_nonfinite='skip'"):
        made.setup("fit")


class Root(torch.autograd.Function):
    """The identity, with a gradient that is nan."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * torch.nan


def broken(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(Root.apply(mu), 1.0), obs=x)


def test_a_gradient_that_is_not_finite_moves_nothing():
    made = LightningELBO(broken, AutoDelta(broken), TraceGap_ELBO(), sgd, example=DATA)
    before = [p.detach().clone() for p in made.parameters()]
    with pytest.raises(NonFiniteError, match="'guide.mu_unconstrained' is nan"):
        trainer(max_epochs=1).fit(made, loader())
    assert equal(before, [p.detach() for p in made.parameters()])


def test_a_term_that_is_not_finite_moves_nothing():
    made = module(AutoDelta, sgd, example=DATA)
    before = [p.detach().clone() for p in made.parameters()]
    with pytest.raises(NonFiniteError, match="site 'x'"), pyro.validation_enabled(False):
        trainer(max_epochs=1).fit(made, DataLoader(DATA * torch.nan, batch_size=4))
    assert equal(before, [p.detach() for p in made.parameters()])

"""What `test_lightning` runs in its own process and, as a script, in others."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from ddp_programs import leave_together
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch.utils.data import DataLoader

from pyro_elbo import TraceKL_ELBO, schedules
from pyro_elbo.training.lightning import LightningELBO
from pyro_elbo.training.loaders import ResumableLoader

SIZE = 12
DATA = torch.linspace(-2.0, 3.0, SIZE, dtype=torch.float64)


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adam(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def module(guide=AutoNormal, optim=adam, **kwargs):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=8))
    return LightningELBO(model, guide(model), elbo, optim, **kwargs)


def trainer(**kwargs):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    if "callbacks" not in kwargs:
        quiet["enable_checkpointing"] = False
    return Trainer(**{**quiet, **kwargs})


def loader(batch_size=4, shuffle=False):
    return DataLoader(DATA, batch_size=batch_size, shuffle=shuffle)


class Metrics(Callback):
    """What was logged at each step."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *args):
        self.steps.append({name: float(v) for name, v in trainer.callback_metrics.items()})


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def final(made, of):
    """All that a run leaves behind."""
    return {
        "parameters": [p.detach().clone() for p in made.parameters()],
        "optimizer": of.optimizers[0].state_dict()["state"],
        "rates": [group["lr"] for group in of.optimizers[0].param_groups],
        "step_count": made.elbo.step_count,
        "next": torch.rand(3),
    }


def saved_run(
    folder,
    *,
    validate=False,
    resume=None,
    extra=(),
    epochs=5,
    seed=0,
    every=None,
    own=dict,
    **kwargs,
):
    """Train on shuffled data, with a checkpoint at the end of each epoch, or every few steps."""
    made = module()
    pyro.set_rng_seed(seed)
    keep = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=every)
    run = trainer(max_epochs=epochs, callbacks=[keep, *extra], **kwargs)
    kind = ResumableLoader if every else DataLoader
    data = kind(DATA, batch_size=2, shuffle=True, **own())
    run.fit(made, data, loader() if validate else None, ckpt_path=resume)
    return final(made, run)


def two_ranks(folder):
    """Under ddp: what is logged; and a run that was resumed, beside the one it was taken from."""
    metrics = Metrics()
    made = module(AutoDelta, sgd)
    run = trainer(max_epochs=5, callbacks=[metrics], enable_checkpointing=False, **DDP)
    run.fit(made, loader(SIZE // 2), loader(SIZE // 2))
    rank = run.global_rank
    terms = {"steps": metrics.steps, "final": final(made, run)}
    whole = saved_run(folder / "whole", seed=rank, every=4, **DDP)
    saved_run(folder / "part", seed=rank, every=4, epochs=3, **DDP)
    last = folder / "part" / "last.ckpt"
    resumed = saved_run(folder / "part", seed=5, every=4, resume=last, **DDP)
    torch.save({"terms": terms, "whole": whole, "resumed": resumed}, folder / f"{rank}.pt")
    leave_together()


DDP = {"strategy": "ddp", "devices": 2}


def main(what, folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if what == "two_ranks":
        two_ranks(folder)
    else:
        step, every = map(int, what.split(","))
        saved_run(folder, extra=[Kill(step)], every=every or None)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""Kills runs of training at given moments, resumes them, and compares with the run that was not.

``python kill_and_resume.py svi 5 17 write:20``: after steps 5 and 17, and while the checkpoint of
step 20 is being written. A process that was killed leaves nothing but its file; each run is a fork.
"""

import os
import random
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_elbo import TraceKL_ELBO, VariationalEM, fit, schedules
from pyro_elbo.steppers import UntilConverged, UntilMutualInformationStopsRising
from pyro_elbo.training import Checkpoint

NUM_STEPS = 40
NUM_DATA = 50
BATCH = 8


def network(*widths):
    return nn.Sequential(
        nn.Linear(widths[0], widths[1]),
        nn.BatchNorm1d(widths[1]),
        nn.Dropout(0.2),
        nn.Linear(*widths[1:]),
    )


class Program:
    """Plain functions around two networks with buffers; noise from every generator."""

    def __init__(self):
        self.encoder, self.decoder = network(3, 5, 2), network(1, 5, 3)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", NUM_DATA, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), scale).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", NUM_DATA, subsample_size=len(x)):
            loc, log_scale = self.encoder(x + 0.01 * np.random.rand()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp() + random.random()).to_event(1))


def make_svi(program):
    optim = pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99})
    return SVI(program.model, program.guide, optim, TraceKL_ELBO(beta=annealed()))


def make_em(program):
    """Its rule remembers; what it looks at stands for the information."""
    rule = UntilMutualInformationStopsRising(
        lambda: -float(pyro.param("scale").detach()),
        every=3,
        patience=2,
        until=UntilConverged(window=2, max_steps=6),
    )
    optims = pyro.optim.Adam({"lr": 3e-2}), pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.99})
    loss = TraceKL_ELBO(beta=annealed())
    return VariationalEM(program.model, program.guide, *optims, loss, e_steps=rule, m_steps=2)


def annealed():
    return schedules.Linear(4.0, 1.0, num_steps=30)


STEPPERS = {"svi": make_svi, "em": make_em}


def train(kind, path, *, resume=False, kill=None):
    """A run to the end, or to where it is killed; all that it leaves behind."""
    pyro.set_rng_seed(1 if resume else 0)
    pyro.clear_param_store()
    program = Program()
    x = torch.randn(NUM_DATA, 3, generator=torch.Generator().manual_seed(2))
    own = torch.Generator().manual_seed(7 if resume else 3)
    loader = DataLoader(TensorDataset(x), BATCH, shuffle=True, generator=own)
    stepper = STEPPERS[kind](program)
    modules = {"encoder": program.encoder, "decoder": program.decoder}
    checkpoint = Checkpoint(path, every=5, modules=modules)
    history = fit(
        stepper,
        batches=loader,
        num_steps=NUM_STEPS,
        callbacks=[checkpoint, *([Killer(kill)] if kill else [])],
        resume=path if resume else None,
        progress=False,
    )
    optims = getattr(stepper, "optims", None) or {"optim": stepper.optim}
    return {
        "params": dict(pyro.get_param_store().named_parameters()),
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optims": {name: optim.get_state() for name, optim in optims.items()},
        "rules": stepper.state_dict() if hasattr(stepper, "state_dict") else {},
        "history": {n: torch.from_numpy(v) for n, v in history.columns.items() if n != "seconds"},
        "rng": [torch.get_rng_state(), own.get_state(), random.random(), np.random.rand()],
    }


class Killer:
    """Ends the process without a goodbye, after a step or in the middle of a file's writing."""

    def __init__(self, moment):
        self.in_write, self.step = moment.startswith("write:"), int(moment.split(":")[-1])

    def __call__(self, run):
        if run.step == self.step:
            if not self.in_write:
                os.kill(os.getpid(), signal.SIGKILL)
            torch.save = self.cut_off

    @staticmethod
    def cut_off(content, file):
        file.write(b"PK\x03\x04 the beginning of a file")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def forked(function):
    """Run in a child process; its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        function()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def same(one, other):
    """Whether two results are the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def save(kind, folder, name, **kwargs):
    torch.save(train(kind, folder / "run.ckpt", **kwargs), folder / name)


def main(kind, *moments):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        assert forked(lambda: save(kind, folder, "whole.pt")) == 0
        whole = torch.load(folder / "whole.pt", weights_only=False)
        for moment in moments:
            (folder / "run.ckpt").unlink()
            status = forked(partial(train, kind, folder / "run.ckpt", kill=moment))
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, moment
            resume = (folder / "run.ckpt").exists()
            again = partial(save, kind, folder, "resumed.pt", resume=resume)
            assert forked(again) == 0, moment
            resumed = torch.load(folder / "resumed.pt", weights_only=False)
            differing = [part for part in whole if not same(whole[part], resumed[part])]
            assert not differing, f"killed at {moment}: {differing} differ"
    print("same")


if __name__ == "__main__":
    main(*sys.argv[1:])

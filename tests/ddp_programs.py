"""What `test_ddp` runs, in one process and, as a script under torchrun, in two."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
import torch.distributed
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch.nn.parallel import DistributedDataParallel

from pyro_elbo import NonFiniteError, TraceGap_ELBO, TraceKL_ELBO, schedules

SIZE = 8
STEPS = 10
DRAWS = 400
DATA = torch.tensor([-2.1, -1.7, -2.4, 0.3, 1.8, 2.2, 2.6, 1.1], dtype=torch.float64)


class Mixture(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor([-1.0, 1.0]))
        self.scale = PyroParam(torch.tensor(1.5), constraint=dist.constraints.positive)

    def forward(self, indices, x):
        with pyro.plate("data", SIZE, subsample=indices):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(self.loc[c], self.scale), obs=x)


class Labels(PyroModule):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(SIZE, 2))

    def forward(self, indices, x):
        with pyro.plate("data", SIZE, subsample=indices):
            logits = self.logits[indices]
            enumerated = {"enumerate": "parallel"}
            pyro.sample("c", dist.Categorical(logits=logits), infer=enumerated)


def normal(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def unscaled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


class Subsampled(PyroModule):
    """Has all data, draws a part of them, and remembers which."""

    def __init__(self, count):
        super().__init__()
        self.count, self.drawn = count, []

    def forward(self):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", SIZE, subsample_size=self.count) as indices:
            self.drawn.append(indices.clone())
            pyro.sample("x", dist.Normal(mu, 1.0), obs=DATA[indices])


class Prior(PyroModule):
    """Its location is a parameter of the prior alone."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        mu = pyro.sample("mu", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", SIZE, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shard(rank, size):
    """The indices of a rank's data, or of all."""
    return torch.arange(rank, SIZE, size)


def wrapped(module, args, size, **kwargs):
    with torch.no_grad():
        module(*args)
    return DistributedDataParallel(module, **kwargs) if size > 1 else module


def trained(model, guide, elbo, args, size, **kwargs):
    """The loss of each step, the parameters that training ends at, and the steps counted."""
    module = elbo(model, guide)
    ddp = wrapped(module, args, size, **kwargs)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = ddp(*args)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {
        "losses": torch.stack(losses),
        "parameters": [p.detach().clone() for p in module.parameters()],
        "step_count": module.state_dict()["_extra_state"]["step_count"],
    }


def enumerated(rank, size):
    indices = shard(rank, size)
    elbo = TraceKL_ELBO(beta=schedules.Linear(4.0, 1.0, num_steps=5))
    return trained(Mixture(), Labels(), elbo, (indices, DATA[indices]), size)


def point_mass(rank, size):
    return trained(normal, AutoDelta(normal), TraceKL_ELBO(), (DATA[shard(rank, size)],), size)


def subsampled(rank, size):
    """Where the ranks together have room for all data."""
    model = Subsampled(SIZE // size)
    result = trained(model, AutoDelta(model), TraceGap_ELBO(), (), size)
    return {**result, "drawn": torch.stack(model.drawn[-STEPS:])}


def warm_up(rank, size):
    """The prior's parameter has no gradient at the first step."""
    model = Prior()
    elbo = TraceKL_ELBO(beta=schedules.Linear(0.0, 1.0, num_steps=5))
    args = (DATA[shard(rank, size)],)
    unused = {"find_unused_parameters": True} if size > 1 else {}
    return trained(model, AutoDelta(model), elbo, args, size, **unused)


def noisy(rank, size):
    """Gradients with guide noise and subsampling, at one place."""
    pyro.set_rng_seed(7 + rank)
    model = Subsampled(2)
    module = TraceGap_ELBO()(model, AutoNormal(model))
    ddp = wrapped(module, (), size)
    gradients = []
    for _ in range(DRAWS):
        ddp.zero_grad()
        ddp().backward()
        gradients.append(torch.stack([p.grad.clone() for p in module.parameters()]))
    return {"gradients": torch.stack(gradients)}


def told(rank, size):
    """What is said of a plate that takes the shard for all data, and of an AutoGuide not called."""
    x = DATA[shard(rank, size)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(unscaled, AutoDelta(unscaled), TraceKL_ELBO(), (x,), size)
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    model = Prior()
    try:
        DistributedDataParallel(TraceKL_ELBO()(model, AutoNormal(model)))(x)
    except ValueError as error:
        said.append(str(error))
    skipping = TraceKL_ELBO(on_nonfinite="skip")(normal, AutoDelta(normal))
    ddp = wrapped(skipping, (x,), size)
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("ignore")
        try:
            ddp(x * torch.nan)
        except NonFiniteError as error:
            said.append(str(error))
    return {"said": said}


BOTH = [enumerated, point_mass, subsampled, warm_up, noisy]


def run(program, rank, size):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return program(rank, size)


def leave_together():
    """End this process, once all are here: gloo at times aborts one that takes its threads down."""
    torch.distributed.barrier()
    os._exit(0)


def main(folder):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = {program.__name__: run(program, rank, size) for program in [*BOTH, told]}
    torch.save(results, Path(folder) / f"{rank}.pt")
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])

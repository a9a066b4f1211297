"""Programs with sites to enumerate, in the guide, in the model and in both."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex

DATA = torch.tensor([0.3, -1.0, 2.0, 1.5], dtype=torch.float64)
PARALLEL = {"enumerate": "parallel"}


def weights():
    return pyro.param("weights", torch.tensor([0.2, 0.7])).softmax(-1)


def mixture():
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 4, subsample_size=2) as indices:
        c = pyro.sample("c", dist.Categorical(weights()), infer=PARALLEL)
        pyro.sample("x", dist.Normal(Vindex(locs)[..., c], 0.7), obs=DATA[indices])


def locs_guide():
    loc = pyro.param("loc", torch.tensor([0.5, 1.0]))
    pyro.sample("locs", dist.Normal(loc, pyro.param("scale", torch.tensor(0.4))).to_event(1))


def hmm():
    transition = pyro.param("transition", torch.tensor([[0.3, 1.0], [0.5, -0.2]])).softmax(-1)
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    c = 0
    for t in pyro.markov(range(4)):
        c = pyro.sample(f"c{t}", dist.Categorical(transition[c]), infer=PARALLEL)
        pyro.sample(f"x{t}", dist.Normal(locs[c], 0.7), obs=DATA[t])


def hidden_prior(outside=False, mixed=False):
    """z hangs on c, and x on z (and on c too, where mixed)."""

    def model():
        if outside:
            c = pyro.sample("c", dist.Categorical(weights()), infer=PARALLEL)
        with pyro.plate("data", 4):
            if not outside:
                c = pyro.sample("c", dist.Categorical(weights()), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(2.0 * c - 1.0, 1.0))
            pyro.sample("x", dist.Normal(z + c if mixed else z, 0.7), obs=DATA)

    return model


def z_guide():
    with pyro.plate("data", 4):
        loc, scale = pyro.param("q", torch.tensor([0.5, 0.4]))
        pyro.sample("z", dist.Normal(loc, scale))


def both_sides():
    with pyro.plate("data", 4):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        c = pyro.sample("c", dist.Categorical(weights()), infer=PARALLEL)
        pyro.sample("x", dist.Normal(a + c, 0.7), obs=DATA)


def a_guide(infer):
    def guide():
        with pyro.plate("data", 4):
            pyro.sample("a", dist.Bernoulli(pyro.param("q", torch.tensor(0.4))), infer=infer)

    return guide


def nested():
    a = pyro.sample("a", dist.Categorical(weights()))
    with pyro.plate("data", 4):
        b = pyro.sample("b", dist.Categorical(torch.tensor([[0.5, 0.5], [0.2, 0.8]])[a]))
        z = pyro.sample("z", dist.Normal(b * 1.0, 1.0))
        pyro.sample("x", dist.Normal(z + a, 1.0), obs=DATA)


def nested_guide(kind_of_a, kind_of_b):
    def guide():
        logits = pyro.param("logits", torch.tensor([[0.3, -0.2], [0.6, 0.1]]))
        a = pyro.sample("a", dist.Categorical(logits=logits[0]), infer={"enumerate": kind_of_a})
        with pyro.plate("data", 4):
            b = dist.Categorical(logits=Vindex(logits)[a, :] * DATA[:, None])
            b = pyro.sample("b", b, infer={"enumerate": kind_of_b})
            pyro.sample("z", dist.Normal(0.3 + b, 0.5))

    return guide


PROGRAMS = {
    "mixture": (mixture, locs_guide),
    "hmm": (hmm, locs_guide),
    "prior": (hidden_prior(), z_guide),
    "global prior": (hidden_prior(outside=True), z_guide),
    "prior and likelihood": (hidden_prior(mixed=True), z_guide),
    "both sides": (both_sides, a_guide(PARALLEL)),
    "nested parallel": (nested, nested_guide("parallel", "parallel")),
    "nested sequential": (nested, nested_guide("sequential", "sequential")),
    "nested parallel in sequential": (nested, nested_guide("sequential", "parallel")),
    "nested sequential in parallel": (nested, nested_guide("parallel", "sequential")),
}

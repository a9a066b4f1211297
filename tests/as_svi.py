"""Cases in which a stepper is to do what SVI does, whatever happens between its steps."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_elbo import CompiledSVI, TraceKL_ELBO

KINDS = {"replayed": {"compiles": False}, "its optimiser inside": {"max_nodes": 1}}
CHANGED_AFTER = 7
X = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(4))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc[: len(x)], scale))


def leaf(name):
    return dict(pyro.get_param_store().named_parameters())[name]


def optimizers(svi):
    found = svi.optim.optim_objs.values()
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in found]


def outcome(case, make):
    """What a case gives: numbers, and what the parameters are in the end."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        numbers = [float(number) for number in case(make)]
    ends = {n: p.detach().clone() for n, p in pyro.get_param_store().named_parameters()}
    return numbers, ends, [str(warning.message) for warning in said]


def assert_as_svi(case, says=None):
    """A case is a generator of numbers, from a function that makes a stepper like SVI."""
    numbers, ends, _ = outcome(case, SVI)
    for kind, options in KINDS.items():
        made = []

        def make(*parts, options=options, made=made, **more):
            made.append(CompiledSVI(*parts, **{**options, **more}))
            return made[-1]

        own_numbers, own_ends, said = outcome(case, make)
        assert own_numbers == pytest.approx(numbers, rel=1e-12, abs=1e-12), kind
        assert own_ends.keys() == ends.keys(), kind
        for name, value in ends.items():
            torch.testing.assert_close(own_ends[name], value, rtol=1e-12, atol=1e-12)
        reasons = [line for line in said if "CompiledSVI" in line and "max_nodes=1 " not in line]
        assert len(reasons) == (says is not None) and all(says in line for line in reasons)
        if says is None:
            assert all("of a graph" in svi.explain() for svi in made)


def changed(change, more=6, optim=lambda: Adam({"lr": 0.05}), programs=lambda: (model, guide)):
    """Steps, something that happens to the stepper, and steps."""

    def case(make):
        svi = make(*programs(), optim(), TraceKL_ELBO())
        yield from (svi.step(X) for _ in range(CHANGED_AFTER))
        change(svi)
        yield from (svi.step(X) for _ in range(more))

    return case

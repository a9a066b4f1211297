"""Indexing that takes every entry in order becomes a view; any other stays; so do all numbers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from pyro.optim import Adam

from pyro_elbo import CompiledSVI, TraceKL_ELBO
from pyro_elbo.capture.indexing import views_of_indexing
from pyro_elbo.capture.private import trace_operations

INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default}
X = torch.arange(6.0, dtype=torch.float64).view(3, 2) - 2.5


def all_rows(x):
    return [x[torch.arange(3)], x[torch.arange(3).view(-1, 1, 1)]]


def all_columns(x):
    return [x[:, torch.arange(2).unsqueeze(-1)]]


def gradient(x):
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = (x[torch.arange(3).view(3, 1)].exp() * torch.arange(1.0, 3.0)).sum()
        return list(torch.autograd.grad(value, [x]))


def broadcast(x):
    return [x.t()[torch.arange(2).view(2, 1)], x[:1].expand(3, 2)[torch.arange(3)]]


def flattened(x):
    return [x.t()[torch.arange(2)].contiguous().view(-1)]


def some_rows(x):
    return [x[torch.arange(2)]]


def shifted(x):
    return [x[torch.arange(3) - 1], x[torch.arange(1, 3)]]


def repeated(x):
    return [x[torch.arange(3).view(3, 1).expand(3, 2)]]


def two(x):
    return [x[torch.arange(2), torch.arange(2)]]


def changed_after(x):
    y = x[torch.arange(3)]
    y.add_(1.0)
    return [y, x * 1.0]


def source_changed(x):
    x = x * 1.0
    y = x[torch.arange(3)]
    x.view(-1).add_(1.0)
    return [y, x]


def put_twice(x):
    y = torch.zeros(3, 2, dtype=x.dtype)
    i = torch.arange(3)
    return [y.index_put([i], x, accumulate=True), y.index_put([i], 2 * x, accumulate=True)]


def put_on_others(x):
    return [(x * 2).index_put([torch.arange(3)], x, accumulate=True)]


def put_broadcast(x):
    y = torch.zeros(3, 2, dtype=x.dtype)
    return [y.index_put([torch.arange(3)], x[:1], accumulate=True)]


VIEWS = (all_rows, all_columns, gradient, broadcast, flattened)
OTHERS = (
    *(some_rows, shifted, repeated, two, changed_after, source_changed),
    *(put_twice, put_on_others, put_broadcast),
)


@pytest.mark.parametrize("function", [*VIEWS, *OTHERS])
def test_the_numbers_stay(function):
    graph = trace_operations(function, X.clone())
    right = [tensor.clone() for tensor in graph(X.clone())]
    views_of_indexing(graph.graph)
    graph.recompile()
    for value, other in zip(graph(X.clone()), right, strict=True):
        assert torch.equal(value, other) and value.stride() == other.stride()
    targets = {node.target for node in graph.graph.nodes}
    assert bool(targets & INDEXING) == (function in OTHERS)


@config_enumerate
def hidden_markov(x):
    with pyro.plate("states", 3):
        logits = pyro.sample("logits", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("sequences", x.shape[1]):
        state = 0
        for t in pyro.markov(range(len(x))):
            transition = dist.Categorical(logits=Vindex(logits)[..., state, :])
            state = pyro.sample(f"state_{t}", transition)
            pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[..., state], 1.0), obs=x[t])


@pytest.mark.slow
def test_a_compiled_hidden_markov_model_is_the_eager_one():
    """By a scatter that torch's compiler reads too early some gradients were a tenth off."""
    x = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    found = []
    for kind in (SVI, CompiledSVI):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        guide = AutoNormal(pyro.poutine.block(hidden_markov, expose=["logits", "locs"]))
        svi = kind(hidden_markov, guide, Adam({"lr": 0.01}), TraceKL_ELBO(max_plate_nesting=1))
        losses = [svi.step(x) for _ in range(20)]
        store = pyro.get_param_store().named_parameters()
        found.append((losses, torch.cat([p.detach().reshape(-1) for _, p in store])))
    assert "compiled in" in svi.explain()
    (losses, parameters), (own_losses, own) = found
    assert own_losses == pytest.approx(losses, rel=1e-9)
    torch.testing.assert_close(own, parameters, rtol=1e-9, atol=1e-9)

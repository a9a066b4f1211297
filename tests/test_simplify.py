"""Captured graphs are made smaller, and compute what they did, bit for bit."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO
from pyro_elbo.capture.private import trace_operations
from pyro_elbo.capture.simplify import simplify
from pyro_elbo.capture.tags import is_random

X = torch.tensor([0.3, -1.2, torch.inf, torch.nan, -0.0], dtype=torch.double)


def run(graph, *inputs):
    graph.recompile()
    return [tensor.clone().view(torch.long) for tensor in graph(*inputs)]


def size(graph):
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def repeated(x):
    y = (x * 1).detach().clone().expand(5) / 1
    return [y.exp() + x.exp(), (y.exp() * 2).view(5), x + 0.0, x.pow(1), 1.0 * x]


def test_what_changes_nothing_and_what_is_there_already_is_taken_out():
    graph = trace_operations(repeated, X)
    right, before = run(graph, X), size(graph)
    simplify(graph.graph)
    for value, other in zip(run(graph, X), right, strict=True):
        assert torch.equal(value, other)
    assert size(graph) < before
    exponentials = [n for n in graph.graph.nodes if n.target is torch.ops.aten.exp.default]
    assert len(exponentials) == 1


def conversions(x):
    number = torch.tensor(2, dtype=torch.int32)
    return [x.float(), x.float() * number, (x.int() * 1).double(), x.int().double() * 1.0]


def test_a_change_of_dtype_or_shape_is_a_change():
    x = torch.tensor([0.5, 1.5])
    graph = trace_operations(conversions, x)
    right = [tensor.clone() for tensor in graph(x)]
    simplify(graph.graph)
    graph.recompile()
    for value, other in zip(graph(x), right, strict=True):
        assert value.dtype == other.dtype and torch.equal(value, other)


def test_a_copy_into_another_order_in_memory_stays():
    def transposed(x):
        return [x.t().contiguous().view(-1), x.t() @ x.t().contiguous().t()]

    x = torch.randn(3, 2)
    graph = trace_operations(transposed, x)
    right = [tensor.clone() for tensor in graph(x)]
    simplify(graph.graph)
    graph.recompile()
    for value, other in zip(graph(x), right, strict=True):
        assert torch.equal(value, other)


def powers(x):
    return [x * 2, x * 2.0, x.pow(2), x.pow(3), x.sum(0), x.sum(0, keepdim=True), x + 1, x + True]


def test_operations_that_differ_in_an_argument_are_two():
    graph = trace_operations(powers, X)
    right = run(graph, X)
    simplify(graph.graph)
    for value, other in zip(run(graph, X), right, strict=True):
        assert torch.equal(value, other)


def test_two_draws_are_two():
    graph = trace_operations(lambda x: [torch.randn(5) - torch.randn(5) + x], X)
    simplify(graph.graph)
    assert sum(map(is_random, graph.graph.nodes)) == 2


def changed(x):
    y = x.clone()
    before = y.exp()
    part = y[1:].view(-1)
    part.add_(1.0)
    other = (x + 1).clone()
    return [y, y.clone(), before, y.exp(), part * 1, other, other.exp(), other.exp()]


def masked(x):
    kept = x.isfinite()
    kept.logical_and_(x > 0)
    return [torch.where(kept, x, 0.0), torch.where(x.isfinite(), x, 0.0), (x * 1).exp(), x.exp()]


@pytest.mark.parametrize("function", [changed, masked])
def test_what_is_changed_in_place_is_left_alone(function):
    graph = trace_operations(function, X)
    right, before = run(graph, X.clone()), size(graph)
    simplify(graph.graph)
    for value, other in zip(run(graph, X.clone()), right, strict=True):
        assert torch.equal(value, other)
    assert size(graph) < before


@pytest.mark.parametrize("beta", [0.3, 0.7, 3.0, {"z": 0.3}])
@pytest.mark.parametrize("loss", [TraceGap_ELBO, TraceKL_ELBO])
def test_a_weight_leaves_a_sites_own_scale_as_it_is(loss, beta):
    @poutine.scale(scale=0.7)
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    @poutine.scale(scale=0.7)
    def guide():
        pyro.sample("z", dist.Normal(0.5, 1.0))

    def kl(beta):
        pyro.set_rng_seed(0)
        terms = loss(beta=beta).decompose(model, guide)
        assert {atom.scale for atom in terms.sites["z"].atoms} == {0.7}
        return terms.kl

    assert kl(beta) == kl(1.0)
    with poutine.scale(scale=2.0):
        pyro.set_rng_seed(0)
        outer = loss(beta=beta).decompose(model, guide).kl
    assert torch.isclose(outer, 2 * kl(1.0), rtol=1e-6)

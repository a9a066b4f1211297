"""A graph returns once what its outputs say twice, and all of them are read from the rest."""

from __future__ import annotations

import pytest
import torch

from pyro_elbo.capture.outputs import leave_out_what_follows
from pyro_elbo.capture.private import trace_operations

X = torch.tensor([0.5, -0.0, torch.inf, torch.nan, -1e-300])


def twice(x):
    y = x.exp()
    return [x + 0.0, y, y, x * 2]


def negated(x):
    y = x * 2
    return [x + 0.0, -y, y, y, -y]


def negated_twice(x):
    y = x * 2
    z = -y
    return [x + 0.0, -z, z, y]


def constants(x):
    number = torch.tensor(0.3)
    return [x + 0.0, torch.arange(3), torch.zeros(2) + number, number * 2, -number, x.sin()]


def drawn(x):
    return [x + 0.0, torch.zeros(2).normal_(), torch.rand(2), torch.ones(2)]


def changed(x):
    y, zeros = x * 2, torch.zeros(5)
    before = -y
    y.add_(1.0)
    zeros.add_(x)
    return [x + 0.0, before, y, zeros]


FUNCTIONS = {
    twice: 2,
    negated: 1,
    negated_twice: 2,
    constants: 1,
    drawn: 2,
    changed: 3,
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_tensor_is_read_from_those_that_are_returned(function):
    graph = trace_operations(function, X)
    torch.manual_seed(0)
    first, *right = [tensor.clone() for tensor in graph(X)]
    readings = leave_out_what_follows(graph.graph, 1)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    torch.manual_seed(0)
    own_first, *returned = graph(X)
    assert torch.equal(own_first.nan_to_num(), first.nan_to_num())
    assert len(returned) == FUNCTIONS[function]
    for reading, value in zip(readings, right, strict=True):
        torch.testing.assert_close(
            reading.of(returned.__getitem__), value, rtol=0, atol=0, equal_nan=True
        )
        assert torch.equal(reading.of(returned.__getitem__).signbit(), value.signbit())


def test_a_constant_is_read_anew_each_time():
    graph = trace_operations(lambda x: [x + 0.0, torch.arange(3)], X)
    (reading,) = leave_out_what_follows(graph.graph, 1)
    reading.of([].__getitem__).add_(1)
    assert reading.of([].__getitem__).tolist() == [0, 1, 2]

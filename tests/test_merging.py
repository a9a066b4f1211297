"""Small operations are done at once where a graph is compiled, and give what they gave alone."""

from __future__ import annotations

import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import PROGRAMS
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam
from test_captured import BRANCHING, leaves, make, numbers, run

from pyro_elbo import CompiledSVI, TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO
from pyro_elbo.capture import compilation
from pyro_elbo.capture.merging import merged
from pyro_elbo.capture.private import trace_operations

FLAT = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4, 1.1, 0.9, -2.0, 0.1, 0.5, -0.6, 1.4])
FLAT = FLAT.double()
ATEN = torch.ops.aten


def size(graph):
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def count(graph, target):
    return sum(node.target is target for node in graph.graph.nodes)


def both(function, *inputs):
    """A graph, and the same merged, after they are seen to give and to change the same."""
    graph = trace_operations(function, *[tensor.clone() for tensor in inputs])
    new = merged(graph, inputs)
    results = []
    for one in (graph, new):
        own = [tensor.clone() for tensor in inputs]
        torch.manual_seed(0)
        results.append([tensor.clone() for tensor in one(*own)] + own)
    for result, right in zip(*reversed(results), strict=True):
        assert result.dtype == right.dtype
        torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12, equal_nan=True)
    return graph, new


def alike(x):
    """Scalars by themselves, in one chain of operations each, and their total."""
    parts = [(part.reshape(()) * 2).exp() - 0.5 for part in x.split(1)]
    return [torch.stack([part.log1p() for part in parts]), sum(parts[1:], parts[0])]


def test_operations_of_one_kind_become_one_and_a_chain_of_additions_a_sum():
    graph, new = both(alike, FLAT)
    for target in (ATEN.mul.Tensor, ATEN.exp.default, ATEN.sub.Tensor, ATEN.log1p.default):
        assert count(graph, target) == len(FLAT) and count(new, target) == 1
    assert count(graph, ATEN.add.Tensor) == len(FLAT) - 1 and count(new, ATEN.add.Tensor) == 0
    assert size(new) < 12


def rows(x):
    table = x.view(4, 3)
    parts = [(row * table[i, 0]).tanh() for i, row in enumerate(table)]
    return [torch.cat(parts), *(part.sum() for part in parts), *(p.expand(2, 3) for p in parts)]


def test_vectors_with_numbers_that_are_broadcast_over_them_are_rows():
    graph, new = both(rows, FLAT)
    assert count(graph, ATEN.tanh.default) == 4 and count(new, ATEN.tanh.default) == 1
    assert count(new, ATEN.sum.default) == 0 and count(new, ATEN.sum.dim_IntList) == 1


def test_every_other_entry_and_any_order_of_them_is_found():
    def shuffled(x):
        parts = [part.reshape(()) for part in x.split(1)]
        first = [part.exp() for part in parts[::2]]
        order = [7, 0, 3, 10, 1, 5, 2, 11]
        return [torch.stack(first), *(parts[i].log1p().neg() for i in order)]

    graph, new = both(shuffled, FLAT.abs())
    assert count(graph, ATEN.exp.default) == 6 and count(new, ATEN.exp.default) == 1
    assert count(graph, ATEN.log1p.default) == 8 and count(new, ATEN.log1p.default) == 1


def test_known_numbers_are_computed_beforehand():
    def known(x):
        scales = [torch.tensor(2.0 + i).double() for i in range(12)]
        halves = torch.full((3,), 0.5).double().log()
        parts = [
            part.reshape(()) / scale.log() for part, scale in zip(x.split(1), scales, strict=True)
        ]
        zeros = torch.zeros_like(x[:3]) + 0.0
        return [torch.stack(parts), x[:3] + halves, x[:3] / zeros, x[:3] / -zeros]

    graph, new = both(known, FLAT)
    assert count(graph, ATEN.log.default) == 13 and count(new, ATEN.log.default) == 0


def test_numbers_of_two_dtypes_are_left_alone():
    """A number without dimensions leaves the dtype of a vector as it is; a row would not."""

    def mixed(x, y):
        return [row * part.reshape(()) for row, part in zip(x.view(4, 3), y.split(1), strict=True)]

    graph, new = both(mixed, FLAT.float(), FLAT[:4])
    assert count(new, ATEN.mul.Tensor) == count(graph, ATEN.mul.Tensor) == 4

    def compared(x, y):
        pairs = zip(x.split(1), y.split(1), strict=True)
        return [row == part.reshape(()) for row, part in pairs]  # equal as rounded numbers

    both(compared, FLAT.float(), FLAT + 1e-10)


def test_what_is_read_before_a_change_is_what_was_there():
    def changing(x):
        parts = [part.reshape(()) for part in x.split(1)]
        joined, copies = torch.cat([x[3:5], x[5:7], x[7:9]]), [part.clone() for part in parts]
        before = [part.exp() for part in parts]
        seen = [part.expand(2) for part in parts]
        x.mul_(2.0)
        after = [part.exp() for part in parts]
        return [torch.stack(before), torch.stack(after), joined, *copies, *(s + 1 for s in seen)]

    graph, new = both(changing, FLAT)
    assert count(graph, ATEN.exp.default) == 24 and count(new, ATEN.exp.default) == 2


def test_random_numbers_are_drawn_in_their_order():
    def drawn(x):
        first = [torch.randn_like(part) * part for part in x.split(1)]
        second = torch.rand(3, dtype=x.dtype) + x[:3]
        return [torch.cat(first), second]

    both(drawn, FLAT)


def test_additions_of_a_number_to_itself_are_no_chain():
    def doubled(x):
        parts = [part.reshape(()) for part in x.split(1)]
        total = parts[0]
        for part in parts[1:]:
            total = (total + total) + part
        for _ in range(40):
            total = total + total
        return [total]

    both(doubled, FLAT)


def test_a_graph_that_asks_how_tensors_lie_in_memory_is_left_alone():
    def strided(x):
        return [torch.as_strided(x.view(4, 3).t() * 1.0, (12,), (1,)) * 1.0]

    graph, new = both(strided, FLAT)
    assert size(new) == size(graph)


def changed_after(x):
    a = [x * 2.0 for _ in range(4)]
    a[0].add_(1.0)
    return a


def written_through_a_transposed_view(x):
    x.view(4, 3).t()[0].add_(1.0)
    return [x * 1.0]


def read_before_and_after_transposed(x):
    table, parts = x.view(4, 3).t(), [part.reshape(()) for part in x.split(1)]
    before = [table * part for part in parts]
    x.mul_(2.0)
    return before + [table * part for part in parts]


def drawn_like_transposed(x):
    table, parts = x.view(3, 4).t() * 1.0, [part.reshape(()) for part in x.split(1)]
    found = [table * part for part in parts]
    return [torch.randn_like(value) for value in found]


def picked_before_and_after(x):
    parts, order = [part.reshape(()) for part in x.split(1)], [7, 0, 3, 10, 1, 5, 2, 11]
    before = [parts[i].exp() for i in order]
    x.mul_(2.0)
    return before + [parts[i].exp() for i in order]


def negated_by_a_view(x):
    return [torch.complex(x, x).conj().imag]


def rows_of_a_transposed_input(x):
    before = [row * 2 for row in x]
    x[0].add_(1)
    return before + [row * 2 for row in x]


MEMORY = [changed_after, written_through_a_transposed_view, read_before_and_after_transposed]
MEMORY += [drawn_like_transposed, negated_by_a_view, picked_before_and_after]


@pytest.mark.parametrize("function", MEMORY, ids=lambda function: function.__name__)
def test_how_tensors_lie_in_memory_counts(function):
    both(function, FLAT)


def test_an_input_may_be_transposed():
    both(rows_of_a_transposed_input, FLAT.view(3, 4).t())


def test_an_output_is_nobody_elses_memory():
    """A gradient that is the data is not to be the data's memory: whoever takes it zeroes it."""

    def copied(x):
        return [x.clone(), torch.cat([x[:6], x[6:]]), x.clone()]

    _, new = both(copied, FLAT)
    own = FLAT.clone()
    outputs = new(own)
    assert len({tensor.data_ptr() for tensor in (own, *outputs)}) == 4


UNARY = [torch.exp, torch.tanh, torch.neg, lambda t: t * 0.5, lambda t: t - 1.0, torch.clone]
UNARY += [torch.sum, lambda t: t.sum(0) if t.dim() else t, lambda t: t.reshape(-1), torch.sigmoid]
UNARY += [lambda t: t.expand(2, *t.shape), lambda t: t.unsqueeze(0), lambda t: t.float().double()]
UNARY += [lambda t: t.reshape(-1)[:1], lambda t: t.t() if t.dim() == 2 else t, torch.zeros_like]
BINARY = [torch.add, torch.sub, torch.mul, lambda a, b: torch.where(a > b, a, b)]
BINARY += [lambda a, b: torch.stack([a, b]) if a.shape == b.shape else a + b]
BINARY += [lambda a, b: torch.cat([a.reshape(-1), b.reshape(-1), a.reshape(-1)])]
SCALARS, VECTORS = [(i, ()) for i in range(4)], [(4, (1,)), (5, (1,)), (6, (3,)), (9, (3,))]
STARTS = [*SCALARS, *VECTORS, (0, (2, 3))]
NUM_KINDS = len(UNARY) + len(BINARY)
NUMBER = st.integers(0, 63)
STEPS = st.lists(st.tuples(st.integers(0, NUM_KINDS + 1), NUMBER, NUMBER), min_size=4, max_size=40)


def fit(one, other):
    sizes = zip(reversed(one.shape), reversed(other.shape), strict=False)
    return all(1 in pair or len({*pair}) == 1 for pair in sizes)


def program(steps, x):
    """Operations of all kinds, with changes in place and draws between them."""
    found = [x[i : i + torch.Size(s).numel()].view(s) for i, s in STARTS]
    found.append(torch.tensor(0.7, dtype=x.dtype))
    for kind, i, j in steps:
        one, other = found[i % len(found)], found[j % len(found)]
        if kind < len(UNARY):
            found.append(UNARY[kind](one))
        elif kind < NUM_KINDS and fit(one, other):
            found.append(BINARY[kind - len(UNARY)](one, other))
        elif kind == NUM_KINDS:
            x[j % 12].copy_(one.sum().tanh())
        else:
            found.append(torch.randn_like(one) * one)
        if found[-1].numel() > 60:
            found.pop()
    return [tensor * 1.0 for tensor in found]


@given(STEPS)
@settings(max_examples=60)
def test_any_program_gives_what_it_gave(steps):
    both(partial(program, steps), FLAT * 0.3)


@pytest.fixture
def only_merged(monkeypatch):
    """In place of what is compiled, the graph that would be."""
    sizes = []

    def instead(graph, inputs):
        sizes.append(size(graph))
        return torch.no_grad()(graph.forward)

    monkeypatch.setattr(compilation, "compile_graph", instead)
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    return sizes


def assert_close(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-9)
    for some, others in zip(
        [*one[1], one[2].values()], [*other[1], other[2].values()], strict=True
    ):
        for value, right in zip(some, others, strict=True):
            torch.testing.assert_close(value, right, rtol=1e-8, atol=1e-8)


def assert_as_svi(name, loss):
    right = run(*make(SVI, name, loss))
    svi, own = make(CompiledSVI, name, loss)
    assert_close(run(svi, own), right)
    assert name == BRANCHING or "compiled in" in svi.explain(), svi.explain()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_merged_step_is_that_of_svi(name, only_merged):
    assert_as_svi(name, TraceKL_ELBO)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [TraceGap_ELBO, TraceEntropy_ELBO], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_merged_step_of_another_loss_is_that_of_svi(name, loss, only_merged):
    assert_as_svi(name, loss)


def chain(y):
    """An autoregression of 20 scalars, of which the sum is observed."""
    x = total = torch.zeros(())
    for i in range(20):
        x = pyro.sample(f"x_{i}", dist.Normal(0.9 * x, 1.0))
        total = total + x
    pyro.sample("y", dist.Normal(total, 1.0), obs=y)


def trained(kind, calls, **options):
    """The last losses and terms of each call, and the parameters in the end."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(chain, AutoNormal(chain), Adam({"lr": 0.05}), TraceKL_ELBO(), **options)
    found = [(svi.step(Y), numbers(svi.loss.__self__.terms)) for _ in range(calls)]
    return [*map(list, zip(*found, strict=True)), leaves()], svi


Y = torch.tensor(3.0, dtype=torch.double)


def test_many_sites_of_one_kind_take_the_operations_of_a_few(only_merged):
    right, _ = trained(SVI, 6)
    own, svi = trained(CompiledSVI, 6)
    assert_close(own, right)
    assert "compiled in" in svi.explain()
    before = int(re.search(r"graph of (\d+) operations", svi.explain()).group(1))
    assert 4 * only_merged[0] < before


def test_several_steps_a_call_are_merged_each_by_itself(only_merged):
    (losses, terms, ends), _ = trained(SVI, 6)
    own, svi = trained(CompiledSVI, 3, steps_per_call=2)
    assert_close(own, [losses[1::2], terms[1::2], ends])
    assert "2 steps a call" in svi.explain() and "compiled in" in svi.explain()

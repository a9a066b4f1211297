"""What is drawn before a graph is what the graph would draw, and leaves the generator there too."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_elbo.capture import permutation
from pyro_elbo.capture.noise import take_noise_out
from pyro_elbo.capture.permutation import SMALLEST, THREAD, FirstOfPermutation
from pyro_elbo.capture.private import has_compiler, trace_operations

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")

SIZE = 20
TAKES = {
    "the first": lambda order: order[:5],
    "some": lambda order: order[2:7],
    "the last": lambda order: order[-3:],
    "all but the last": lambda order: order[:-4],
    "counted from the end": lambda order: order[-18:4],
    "none": lambda order: order[:0],
    "every other": lambda order: order[::2],
    "some, and all": lambda order: order[:3] + order.sum(),
    "two lengths": lambda order: order[:3].sum() + order[:8],
    "all": lambda order: order,
    "as other numbers": lambda order: order[:5].float(),
    "changed in place": lambda order: order.mul_(2)[:5],
    "a part changed in place": lambda order: order[:5].mul_(2).sum() + order,
}


def outside(take):
    """The graph of what is taken of a permutation, and its noise."""
    zero = torch.zeros(())
    graph = trace_operations(lambda zero: [take(torch.randperm(SIZE)) + zero], zero)
    noise = take_noise_out(graph.graph)
    graph.recompile()
    assert noise.is_all
    return graph, noise


def after(seed, draw):
    torch.manual_seed(seed)
    return draw(), torch.rand(3)


@pytest.mark.parametrize("take", TAKES.values(), ids=TAKES)
def test_what_is_taken_of_a_permutation_is_what_a_program_takes(take):
    graph, noise = outside(take)
    for seed in range(3):
        _, left = after(seed, noise.draw)
        found = graph(torch.zeros(()), *noise.inputs)[0]
        right, others = after(seed, lambda: take(torch.randperm(SIZE)) + torch.zeros(()))
        assert torch.equal(found, right)
        assert torch.equal(left, others)


def test_a_minibatch_takes_no_more_of_a_permutation_than_its_indices():
    _, noise = outside(TAKES["the first"])
    assert [value.shape for value in noise.inputs] == [(5,)]


def test_the_indices_of_one_run_are_drawn_in_their_place():
    noise = outside(TAKES["the first"])[1].repeated(1)
    (value,) = noise.inputs
    for seed in range(3):
        after(seed, noise.draw)
        torch.manual_seed(seed)
        assert torch.equal(value, torch.randperm(SIZE)[:5])
    assert value.untyped_storage().nbytes() == 4 * SIZE


def test_several_runs_draw_one_after_the_other():
    noise = outside(TAKES["some"])[1].repeated(3)
    after(0, noise.draw)
    torch.manual_seed(0)
    assert all(torch.equal(value[2:7], torch.randperm(SIZE)[2:7]) for value in noise.inputs)


def test_a_graph_that_takes_nothing_has_its_noise_as_an_input():
    graph = trace_operations(lambda: [torch.randn(3) + 1])
    noise = take_noise_out(graph.graph)
    graph.recompile()
    assert noise.is_all
    _, left = after(0, noise.draw)
    right, others = after(0, lambda: torch.randn(3) + 1)
    assert torch.equal(graph(*noise.inputs)[0], right)
    assert torch.equal(left, others)


def drawn(size, count):
    """What fills a tensor with the first so many of a permutation, by compiled code."""
    first = FirstOfPermutation(torch.empty(size, dtype=torch.int32), count)
    first._compile()
    assert first._draw != first._drawn_by_torch
    return first


@needs_compiler
@given(
    size=st.integers(SMALLEST, 20_000),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    before=st.integers(0, 1300),
)
@settings(max_examples=60)
def test_compiled_code_draws_the_first_of_a_permutation_as_torch_does(size, share, seed, before):
    count = 1 + int(share * (size - 2))
    draw, found = drawn(size, count), torch.empty(count, dtype=torch.int32)
    torch.manual_seed(seed)
    torch.rand(before)
    torch.randn(1)  # the next normal number is there already, and stays so
    for _ in range(3):
        state = torch.get_rng_state()
        draw(found)
        left, own = torch.get_rng_state(), torch.randn(5)
        torch.set_rng_state(state)
        assert torch.equal(found, torch.randperm(size)[:count])
        assert torch.equal(left, torch.get_rng_state())
        assert torch.equal(own, torch.randn(5))


@needs_compiler
def test_the_generator_passes_over_each_count_of_numbers():
    found = torch.empty(1, dtype=torch.int32)
    for size in range(SMALLEST, SMALLEST + 2 * 624, 3):
        draw = drawn(size, 1)
        _, own = after(size, lambda draw=draw: draw(found))
        _, others = after(size, lambda size=size: torch.randperm(size))
        assert torch.equal(own, others)


@needs_compiler
def test_minibatches_of_several_runs_are_drawn_by_compiled_code_one_after_the_other():
    noise = minibatches().repeated(3)
    compiled_now(noise)
    after(0, noise.draw)
    torch.manual_seed(0)
    assert all(torch.equal(v, torch.randperm(SMALLEST)[:9]) for v in noise.inputs)


@needs_compiler
def test_the_indices_of_one_run_are_drawn_by_compiled_code():
    noise = minibatches()
    compiled_now(noise)
    (value,) = noise.inputs
    for seed in range(3):
        _, left = after(seed, noise.draw)
        right, others = after(seed, lambda: torch.randperm(SMALLEST)[:9])
        assert torch.equal(value, right)
        assert torch.equal(left, others)


def minibatches():
    zero = torch.zeros(())
    graph = trace_operations(lambda zero: [torch.randperm(SMALLEST)[:9] + zero], zero)
    return take_noise_out(graph.graph)


def compiled_now(noise):
    noise.compile()
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join()
    assert all(fill._draw != fill._drawn_by_torch for fill in noise._fills)


@pytest.mark.parametrize("size, count", [(SMALLEST - 1, 5), (SMALLEST, SMALLEST // 2 + 1)])
def test_torch_draws_few_numbers_and_most_of_a_permutation(monkeypatch, size, count):
    monkeypatch.setattr(permutation, "Thread", lambda **kwargs: pytest.fail("it is compiled"))
    first = FirstOfPermutation(torch.empty(size, dtype=torch.int32), count)
    first.compile()
    assert first._draw == first._drawn_by_torch


def no_compiler(source, types):
    raise OSError("no compiler")


def another_torch():
    return lambda state, order, places, first, size, count: first.zero_()


@pytest.mark.parametrize(
    "name, now",
    [("compile_function", no_compiler), ("_kernel", another_torch)],
    ids=["no compiler", "another torch"],
)
def test_torch_draws_on_where_compiled_code_does_not_draw_the_same(monkeypatch, name, now):
    permutation._kernel.cache_clear()
    permutation._is_right.cache_clear()
    monkeypatch.setattr(permutation, name, now)
    noise = minibatches()
    noise._fills[0]._compile()
    permutation._is_right.cache_clear()
    _, left = after(0, noise.draw)
    right, others = after(0, lambda: torch.randperm(SMALLEST)[:9])
    assert torch.equal(noise.inputs[0], right)
    assert torch.equal(left, others)

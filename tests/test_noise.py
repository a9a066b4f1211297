"""What is drawn before a graph is what the graph would draw, and leaves the generator there too."""

import pytest
import torch

from pyro_elbo.capture.noise import take_noise_out
from pyro_elbo.capture.private import trace_operations

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

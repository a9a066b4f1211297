"""A compiled graph that is run from its tape gives what it gives when it is run."""

import pytest
import torch

from pyro_elbo.capture import private, tape

pytestmark = pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")


def step(state, x, weights):
    """Kernels and a matrix product; the state moves in place."""
    hidden = torch.tanh(x @ weights)
    state.add_(hidden.sum(0))
    return [torch.cat([state, hidden.exp().sum(1)]), (hidden * state).sum().reshape(1)]


def inputs_of(seed, rows=64):
    torch.manual_seed(seed)
    return [torch.randn(3), torch.randn(rows, 50), torch.randn(50, 3)]


def compiled(function, inputs):
    graph = private.trace_operations(function, *[value.clone() for value in inputs])
    return graph, private.compile_graph(graph, [value.clone() for value in inputs])


@pytest.fixture(scope="module")
def taped():
    torch.set_default_dtype(torch.float64)
    try:
        return compiled(step, inputs_of(0))[1]
    finally:
        torch.set_default_dtype(torch.float32)


def runs(taped):
    """Once as always, once for the tape, and then from the tape."""
    assert taped._record is not None
    return [taped(*inputs) for inputs in [inputs_of(1)] for _ in range(4)]


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)


def untaped(taped, inputs):
    with torch.no_grad():
        return taped._run([value.clone() for value in inputs])


def tensors(outputs):
    return [*map(torch.as_tensor, outputs)]


def are_equal(outputs, right):
    return all(map(torch.equal, tensors(outputs), right))


def test_each_run_is_what_it_would_be_without_a_tape(taped):
    state, x, weights = inputs_of(1)
    for number in range(5):
        with torch.no_grad():
            x.mul_(1.1)  # other numbers in the same tensor
        inputs = [state, x, weights]
        right = [value.clone() for value in untaped(taped, inputs)]
        found = taped(*inputs)
        assert (taped._tape is not None) == (number > 0)
        assert are_equal(found, right)


def test_outputs_are_no_memory_of_the_tape(taped):
    found = [*map(tensors, runs(taped))]
    kept = [[value.clone() for value in outputs] for outputs in found]
    taped(*inputs_of(2))
    assert all(
        torch.equal(a, b)
        for one, two in zip(found, kept, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert not torch.equal(found[-1][0], found[-2][0])


@pytest.mark.parametrize("how", ["another tensor", "another storage"])
def test_a_tape_is_not_run_on_other_memory(taped, how):
    inputs = inputs_of(1)
    for _ in range(3):
        taped(*inputs)
    other = torch.randn(64, 50)
    if how == "another tensor":
        inputs[1] = other
    else:
        inputs[1].data = other
    right = untaped(taped, inputs)
    assert are_equal(taped(*inputs), right)
    assert taped._tape is None


def test_gradients_are_as_they_were(taped):
    inputs = inputs_of(1)
    weights = inputs[2].requires_grad_()
    for _ in range(3):
        found = tensors(taped(inputs[0], inputs[1], weights))
        assert not any(value.requires_grad for value in found)
        assert torch.is_grad_enabled()
    assert taped._tape is not None
    with torch.no_grad():
        taped(inputs[0], inputs[1], weights)
        assert not torch.is_grad_enabled()


def test_what_is_no_kernel_is_called_anew():
    def draws(x):
        return [torch.linalg.cholesky(x @ x.T) + torch.randn(3, 3)]

    inputs = [torch.randn(3, 3)]
    run = compiled(draws, inputs)[1]
    assert getattr(run, "_record", None) is None
    first, second, third = (run(*inputs)[0] for _ in range(3))
    assert not torch.equal(first, second) and not torch.equal(second, third)


def test_what_no_tape_can_be_made_of_is_run(taped):
    def fails(inputs):
        raise KeyError("extern_kernels")

    inputs = inputs_of(1)
    run = tape.Taped(taped._run, fails)
    for _ in range(3):
        right = untaped(taped, inputs)
        assert are_equal(run(*inputs), right)


def test_a_compiler_that_does_not_know_the_processor_is_asked_for_less():
    from torch._inductor import config
    from torch._inductor.exc import CppCompileError

    trusts = []

    def compiles():
        trusts.append(config.cpp.vec_isa_ok)
        if len(trusts) == 1:
            raise CppCompileError(["c++"], "unrecognized option")
        return "compiled"

    assert private._for_this_processor([torch.zeros(3)], compiles) == "compiled"
    assert len(trusts) == 2 and trusts[1] == config.cpp.vec_isa_ok


def test_a_large_graph_keeps_no_memory(taped, monkeypatch):
    monkeypatch.setattr(tape, "MOST_BYTES", 0)
    inputs = inputs_of(1)
    large = tape.Taped(taped._run, taped._record)
    right = [untaped(taped, inputs)]
    assert are_equal(large(*inputs), right[0])
    large(*inputs)
    assert large._tape is None and large._record is None

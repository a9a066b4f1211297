"""A compiled step is compared with the graph that it was compiled from, before it is taken."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import SGD, Adam, AdamW, PyroOptim
from torch import nn

from pyro_elbo import CompiledSVI, TraceKL_ELBO
from pyro_elbo.capture import compilation, proof

X = torch.tensor([0.5, -1.0, 2.0])
NUM_STEPS = 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)


def model(x):
    net = pyro.module("net", NET)
    scale = pyro.param("x_scale", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = net.norm(z.unsqueeze(-1)).squeeze(-1) if USES_BUFFERS else z
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.7))


NET, USES_BUFFERS = Net(), False


def in_step(run, number, change):
    """A compiled step that changes one of its inputs, or of its outputs, in a way of its own."""

    def wrong(*inputs):
        outputs = list(run(*inputs))
        with torch.no_grad():
            tensor = inputs[number] if number >= 0 else outputs[0]
            tensor.copy_(change(tensor))
        return outputs

    return wrong


def first_off(tensor):
    return torch.cat([tensor[:1] * 1.1 + 0.01, tensor[1:]])


def last_off(tensor):
    return torch.cat([tensor[:-1], tensor[-1:] * 1.02 + 0.01])


def trained(kind, optim, **kwargs):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = kind(model, guide, optim(), TraceKL_ELBO(), **kwargs)
    losses = [svi.step(X) for _ in range(NUM_STEPS)]
    store = pyro.get_param_store()
    return svi, losses, {name: store[name].detach().clone() for name in store}


OPTIMS = {
    "Adam": lambda: Adam({"lr": 0.05}),
    "AdamW": lambda: AdamW({"lr": 0.05}),
    "SGD": lambda: SGD({"lr": 0.05}),
    "Rprop": lambda: PyroOptim(torch.optim.Rprop, {"lr": 0.05}),
}


@pytest.mark.parametrize("optim", OPTIMS.values(), ids=OPTIMS)
@pytest.mark.parametrize("change", [first_off, last_off, lambda t: t * torch.nan])
@pytest.mark.parametrize("number", [-1, 1, 2])
def test_a_compiler_that_is_wrong_is_found_out(monkeypatch, optim, change, number):
    if number == 2 and optim in (OPTIMS["SGD"], OPTIMS["Rprop"]):
        pytest.skip("no state in the graph")
    if number == 1 and optim is OPTIMS["Rprop"]:
        pytest.skip("moved outside of the graph")
    monkeypatch.setattr(
        compilation, "compile_graph", lambda graph, inputs: in_step(graph, number, change)
    )
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    right = trained(SVI, optim)
    with pytest.warns(UserWarning, match="replayed, not compiled: its compiled form gives other"):
        svi, losses, parameters = trained(CompiledSVI, optim)
    assert losses == pytest.approx(right[1], rel=1e-6)
    assert "replayed, since its compiled form gives other numbers" in svi.explain()
    for name, value in right[2].items():
        torch.testing.assert_close(parameters[name], value, rtol=1e-5, atol=1e-6)


def rounded(tensor):
    factor = 1 + 4 * torch.finfo(tensor.dtype).eps
    return torch.where(tensor == 1.0, tensor, tensor * factor)


@pytest.mark.parametrize("optim", OPTIMS.values(), ids=OPTIMS)
@pytest.mark.parametrize("steps_per_call", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiler_that_rounds_is_not(monkeypatch, optim, steps_per_call, dtype):
    number = -1 if optim is OPTIMS["Rprop"] else 1
    monkeypatch.setattr(
        compilation, "compile_graph", lambda graph, inputs: in_step(graph, number, rounded)
    )
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    torch.set_default_dtype(dtype)
    svi, _, _ = trained(CompiledSVI, optim, steps_per_call=steps_per_call)
    assert "compiled in" in svi.explain()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_entry_beside_large_ones_is_compared(dtype):
    right = torch.tensor([1.0, 1e-3, 0.0], dtype=dtype)
    eps = torch.finfo(dtype).eps
    for entry, off, is_near in ((1, 0.1 * 1e-3, False), (1, 30 * eps, True), (2, 30 * eps, True)):
        other = right.clone()
        other[entry] += off
        assert proof._is_near(right, other, 1.0) is is_near


def test_the_comparison_leaves_everything_where_it_was(monkeypatch):
    """Generators, parameters, states and buffers are those of eager, bit for bit."""
    monkeypatch.setattr(compilation, "compile_graph", lambda graph, inputs: graph)
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    monkeypatch.setattr(f"{__name__}.USES_BUFFERS", True)
    found = []
    for kind in (SVI, CompiledSVI):
        monkeypatch.setattr(f"{__name__}.NET", Net())
        _, losses, parameters = trained(kind, OPTIMS["SGD"])
        found.append((losses, parameters, NET.norm.running_var.clone(), torch.get_rng_state()))
    (losses, parameters, variance, state), (own, ours, own_variance, own_state) = found
    assert own == pytest.approx(losses, rel=1e-6)
    assert torch.equal(state, own_state)
    torch.testing.assert_close(own_variance, variance)
    for name, value in parameters.items():
        torch.testing.assert_close(ours[name], value)


def test_one_step_on_the_other_side_of_a_kink_is_no_proof_against_it(monkeypatch):
    calls = []

    def once(graph, inputs):
        def run(*inputs):
            calls.append(1)
            number, change = (1, first_off) if len(calls) == 1 else (-1, lambda t: t)
            return in_step(graph, number, change)(*inputs)

        return run

    monkeypatch.setattr(compilation, "compile_graph", once)
    monkeypatch.setattr(compilation, "has_compiler", lambda: True)
    svi, losses, _ = trained(CompiledSVI, OPTIMS["Adam"])
    assert "compiled in" in svi.explain()
    assert losses == pytest.approx(trained(SVI, OPTIMS["Adam"])[1], rel=1e-6)

"""CompiledSVI: what is captured, what is captured anew, what goes on eagerly, and says so."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import SGD, Adagrad, Adam, AdamW, ClippedAdam, ExponentialLR, PyroOptim, RMSprop
from torch import nn

from pyro_elbo import NonFiniteError, TraceGap_ELBO, TraceKL_ELBO, fit, schedules
from pyro_elbo.capture import compilation, private
from pyro_elbo.capture.flat import FlatParameters
from pyro_elbo.capture.tags import is_random
from pyro_elbo.steppers.compiled import CompiledSVI
from pyro_elbo.training import Checkpoint

X = torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64)


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(4))[: len(x)]
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale))


def start(kind=CompiledSVI, model=model, guide=guide, optim=None, loss=None, **kwargs):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    if kind is CompiledSVI:
        kwargs = {"compiles": False, **kwargs}
    return kind(model, guide, optim or Adam({"lr": 0.05}), loss or TraceKL_ELBO(), **kwargs)


def leaves():
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def assert_equal(some, others):
    assert some.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in some.items())


def both(act, **kwargs):
    """What an act on a stepper gives, and the parameters after it, with and without capture."""
    found = []
    for kind in (SVI, CompiledSVI):
        svi = start(kind, **{name: make() for name, make in kwargs.items()})
        found.append((act(svi), leaves(), svi))
    (right, parameters, _), (ours, own, svi) = found
    assert ours == right
    assert_equal(own, parameters)
    return svi


OPTIMS = {
    "Adam": lambda: Adam({"lr": 0.05, "weight_decay": 0.1}),
    "AMSGrad": lambda: Adam({"lr": 0.05, "amsgrad": True, "maximize": True}),
    "AdamW": lambda: AdamW({"lr": 0.05, "weight_decay": 0.1}),
    "ClippedAdam": lambda: ClippedAdam({"lr": 0.05, "lrd": 0.9, "clip_norm": 0.5}),
    "centred ClippedAdam": lambda: ClippedAdam({"lr": 0.05, "centered_variance": True}),
    "SGD": lambda: SGD({"lr": 0.01}),
    "Nesterov": lambda: SGD({"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "momentum": lambda: SGD({"lr": 0.01, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "Adagrad": lambda: Adagrad({"lr": 0.05, "lr_decay": 0.1}),
    "RMSprop": lambda: RMSprop({"lr": 0.05}),
    "centred RMSprop": lambda: RMSprop({"lr": 0.05, "centered": True, "momentum": 0.5}),
}


@pytest.mark.parametrize("name", OPTIMS)
def test_an_update_in_the_graph_is_that_of_the_optimiser(name):
    torch.manual_seed(0)
    grads = [{n: torch.randn(s) for n, s in (("a", (3,)), ("b", ()))} for _ in range(20)]
    ends = {}
    for inside in (False, True):
        optim = OPTIMS[name]()
        torch.manual_seed(1)
        parameters = {n: nn.Parameter(torch.randn(s)) for n, s in (("a", (3,)), ("b", ()))}
        flat = None
        for step, grad in enumerate(grads):
            if step == 5 and inside:
                flat = FlatParameters(parameters, parameters, optim, inside=True)
            if flat is None:
                for n, parameter in parameters.items():
                    parameter.grad = grad[n].clone()
                optim(list(parameters.values()))
                continue
            (group,) = flat.groups
            numbers = torch.tensor(group.numbers(), dtype=torch.float64)
            joined = torch.cat([grad[n].reshape(-1) for n in group.names])
            value, state = group.update(group.value, joined, group.state, list(numbers))
            group.value.copy_(value)
            for n, new in state.items():
                group.state[n].copy_(new)
            group.count()
        states = [optim.optim_objs[p].state_dict() for p in parameters.values()]
        ends[inside] = parameters, states
    for n, parameter in ends[True][0].items():
        assert torch.allclose(parameter, ends[False][0][n], rtol=1e-12, atol=1e-14)
    for own, right in zip(ends[True][1], ends[False][1], strict=True):
        assert own["param_groups"][0]["lr"] == right["param_groups"][0]["lr"]
        for key, value in right["state"].get(0, {}).items():
            mine = torch.as_tensor(own["state"][0][key])
            assert torch.allclose(mine, torch.as_tensor(value), rtol=1e-12, atol=1e-14), key


def twenty(svi):
    return [svi.step(X) for _ in range(20)]


@pytest.mark.parametrize("beta", [0.5, schedules.Linear(0.0, 1.0, num_steps=5), {"z": 3.0}])
def test_steps_are_those_of_svi(beta):
    svi = both(twenty, loss=lambda: TraceKL_ELBO(beta=beta))
    assert "of a graph" in svi.explain()


@pytest.mark.parametrize("name", OPTIMS)
def test_any_optimiser_goes(name):
    both(twenty, optim=OPTIMS[name])


def test_an_optimiser_that_no_graph_has_and_clipped_gradients():
    both(twenty, optim=lambda: PyroOptim(torch.optim.Adamax, {"lr": 0.05}))
    both(twenty, optim=lambda: Adam({"lr": 0.05}, {"clip_norm": 0.1}))


def test_a_schedule_of_the_learning_rate():
    def act(svi):
        losses = []
        for _ in range(10):
            losses.append(svi.step(X))
            svi.optim.step()
        return losses

    svi = both(
        act,
        optim=lambda: ExponentialLR(
            {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8}
        ),
    )
    assert svi._num_captures == 1


def test_a_warm_up_that_leaves_zero_is_captured_once_more():
    svi = both(twenty, loss=lambda: TraceKL_ELBO(beta=lambda step: max(0.0, (step - 5) / 5)))
    assert svi._num_captures == 2


def test_an_evaluation_and_a_loss_of_pyro_beside_it():
    both(lambda svi: [svi.step(X), svi.step(X), svi.evaluate_loss(X), svi.step(X), svi.step(X)])


def test_a_loss_that_looks_at_a_value_goes_on_eagerly():
    with pytest.warns(UserWarning, match="training goes on eagerly: it cannot be captured"):
        both(twenty, loss=Trace_ELBO)


def test_a_nan_is_met_as_by_svi():
    data = [X, X, X, X * torch.nan, X]

    def act(svi):
        said = []
        for x in data:
            try:
                with pyro.validation_enabled(False):
                    said.append(svi.step(x))
            except NonFiniteError as error:
                said.append(str(error))
        return said

    both(act)
    both(act, loss=lambda: TraceKL_ELBO(on_nonfinite="raise", beta=2.0))


def test_a_nan_that_is_skipped_moves_nothing():
    def act(svi):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pyro.validation_enabled(False):
                return [str(svi.step(x)) for x in (X, X, X, X * torch.nan, X, X)]

    both(act, loss=lambda: TraceKL_ELBO(on_nonfinite="skip"))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.head, self.extra = nn.Linear(3, 2), None

    def model(self, x, size=8):
        pyro.module("network", self)
        with pyro.plate("data", size, subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            loc = z + (0.0 if self.extra is None else self.extra(z))
            pyro.sample("x", dist.Normal(loc.expand(-1, 2), 1.0).to_event(1), obs=x)

    def guide(self, x, size=8):
        loc, scale = self.head(self.layers(x)).chunk(2, -1)
        with pyro.plate("data", size, subsample=x):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def changes(network, svi, which):
    """Change one thing, as a user might between two steps."""
    if which == "eval":
        network.train(not network.training)
    elif which == "freeze":
        network.head.bias.requires_grad_(not network.head.bias.requires_grad)
    elif which == "layer":
        network.extra = nn.Linear(1, 1) if network.extra is None else None
        if network.extra is not None:
            network.extra.to(network.head.weight)
    elif which == "weight":
        svi.loss.__self__._beta = random.choice([0.0, 0.5, 2.0])
    elif which == "rate":
        for optimizer in svi.optim.optim_objs.values():
            optimizer.param_groups[0]["lr"] *= 0.9
    elif which == "value":
        with torch.no_grad():
            network.head.weight.mul_(1.01)
    elif which == "load":
        network.load_state_dict({n: v + 0.01 for n, v in network.state_dict().items()})
    elif which == "store":
        pyro.clear_param_store()
        svi.optim.optim_objs.clear()
        network.zero_grad()  # what no optimiser was given has piled up under SVI


KINDS = ("eval", "freeze", "layer", "weight", "rate", "value", "load", "store", "batch")


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store")
@pytest.mark.parametrize("seed", range(6))
def test_whatever_changes_between_steps_the_step_is_that_of_svi(seed):
    def trained(kind, **kwargs):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        network = Network()
        svi = kind(network.model, network.guide, Adam({"lr": 0.01}), TraceKL_ELBO(), **kwargs)
        size, losses = 4, []
        for _ in range(25):
            if random.random() < 0.4:
                which = random.choice(KINDS)
                size = random.choice([4, 6]) if which == "batch" else size
                changes(network, svi, which)
            x = torch.randn(size, 2).to(network.head.weight)
            losses.append(svi.step(x, size=random.choice([8, 8, 16])))
        return losses, {n: v.clone() for n, v in network.state_dict().items()}, svi

    right, expected, _ = trained(SVI)
    ours, found, svi = trained(CompiledSVI, compiles=False)
    assert not svi._why_eager, svi.explain()
    assert ours == right
    assert_equal(found, expected)


def test_fresh_noise_and_fresh_minibatches_at_each_step():
    seen = []

    def subsampled(x):
        with pyro.plate("data", 100, subsample_size=3) as index:
            pyro.sample(
                "x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x[index]
            )

    svi = start(model=subsampled, guide=AutoNormal(subsampled))
    for _ in range(6):
        svi.step(torch.arange(100.0))
        seen.append(svi.loss.__self__.terms.indices["data"].tolist())
    assert svi.explain().startswith("5 steps")
    assert len({tuple(index) for index in seen}) == 6


def test_terms_stay_as_they_were():
    svi = start()
    kept = [(svi.step(X), svi.loss.__self__.terms) for _ in range(5)]
    for loss, terms in kept:
        assert float(terms.objective) == -loss
        assert torch.isclose(terms.reconstruction_kl.elbo, terms.objective)


def test_a_value_that_changes_unseen_is_noticed():
    factor = np.ones(1)  # its entries are not looked at

    def swayed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(float(factor[0]) * z, 1.0), obs=x)

    svi = start(model=swayed)
    for _ in range(4):
        svi.step(X)
    factor[0] = 3.0
    with pytest.warns(UserWarning, match="hangs on something that changed unseen"):
        for _ in range(5):
            svi.step(X)
    state = torch.get_rng_state()
    ours = svi.step(X)
    torch.set_rng_state(state)
    assert svi.explain().startswith("eager:")
    assert isinstance(ours, float)


SLOPE = 1.0


def test_globals_and_closures_are_seen():
    global SLOPE

    def sloped(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(SLOPE * offset + z, 1.0), obs=x)

    for kind in (SVI, CompiledSVI):
        offset, losses = 0.0, []
        svi = start(kind, model=sloped)
        for step in range(12):
            offset, SLOPE = float(step > 3), 1.0 + (step > 7)
            losses.append(svi.step(X))
        if kind is SVI:
            right = losses
    assert losses == right
    assert svi._num_captures == 3


def test_numbers_that_change_at_each_step_are_refused_in_the_end():
    def shifted(x, shift):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def shifted_guide(x, shift):
        guide(x)

    def act(svi):
        return [svi.step(X, float(i // 2)) for i in range(80)]

    for kind in (SVI, CompiledSVI):
        svi = start(kind, model=shifted, guide=shifted_guide)
        if kind is SVI:
            right = act(svi)
    with pytest.warns(UserWarning, match="32 kinds of steps were captured already"):
        assert act(svi) == right


def test_an_argument_that_could_change_unseen_goes_on_eagerly():
    svi = start(model=lambda x: model(torch.as_tensor(x)), guide=lambda x: guide(x))
    with pytest.warns(UserWarning, match="an argument is of type ndarray"):
        svi.step(X.numpy())


def test_handlers_around_a_step_hold():
    def act(svi):
        losses = [svi.step(X), svi.step(X), svi.step(X)]
        with poutine.scale(scale=2.0):
            losses += [svi.step(X), svi.step(X)]
        return [*losses, svi.step(X)]

    both(act)


def test_hooks_see_every_gradient():
    def act(svi):
        seen = []
        handle = svi.loss.__self__.register_gradient_hook(
            lambda named: seen.append({n: p.grad.tolist() for n, p in sorted(named.items())})
        )
        losses = [svi.step(X) for _ in range(4)]
        handle.remove()
        return losses, seen, [svi.step(X) for _ in range(3)]

    both(act)


@pytest.mark.parametrize("kinds", [(CompiledSVI, SVI), (SVI, CompiledSVI)])
def test_a_checkpoint_of_one_resumes_in_the_other(kinds, tmp_path):
    first, second = kinds
    whole = fit(start(SVI), X, num_steps=20, progress=False)
    expected = leaves()
    quiet = {"progress": False}
    fit(start(first), X, num_steps=10, callbacks=[Checkpoint(tmp_path / "run")], **quiet)
    more = fit(start(second), X, num_steps=20, resume=tmp_path / "run", **quiet)
    assert_equal(leaves(), expected)
    assert (more["elbo"] == whole["elbo"]).all()


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch):
    right = twenty(start(SVI))
    monkeypatch.setattr(compilation, "has_compiler", lambda: False)
    svi = start(compiles=True)
    with pytest.warns(UserWarning, match="replayed, not compiled: there is no C") as said:
        ours = twenty(svi)
    assert len(said) == 1
    assert torch.allclose(torch.tensor(ours), torch.tensor(right), rtol=1e-12)


def test_a_large_graph_is_not_compiled():
    with pytest.warns(UserWarning, match="more than max_nodes=3 would take long to compile"):
        twenty(start(compiles=True, max_nodes=3))


@pytest.mark.parametrize("compiles", [False, True])
def test_a_graph_of_ones_own_is_stale_after_a_step_as_in_eager(compiles):
    svi = start(CompiledSVI, compiles=compiles)
    for _ in range(3):
        svi.step(X)
    kept = [(p * p).sum() for _, p in pyro.get_param_store().named_parameters()]
    svi.step(X)
    for value in kept:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_a_path_derivative_and_a_decaying_average_go_on_eagerly():
    with pytest.warns(UserWarning, match="path_derivative runs the guide twice"):
        both(twenty, loss=lambda: TraceGap_ELBO(path_derivative=True))


def test_the_private_parts_of_torch_do_what_is_asked_of_them():
    kept = torch.tensor([1.0, 2.0])

    def function(x):
        y = x.detach().requires_grad_()
        with torch.enable_grad():
            (grad,) = torch.autograd.grad((y * y * kept + torch.randn(2)).sum(), y)
        return [grad]

    x = torch.tensor([3.0, 4.0])
    graph = private.trace_operations(function, x)
    attributes = [node for node in graph.graph.nodes if node.op == "get_attr"]
    assert any(getattr(graph, node.target) is kept for node in attributes)
    assert sum(map(is_random, graph.graph.nodes)) == 1
    assert torch.equal(graph(x)[0], 2 * x * kept)


@pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
def test_the_instruction_set_is_the_one_that_torch_would_take():
    from torch._inductor.cpu_vec_isa import VecAMX, pick_vec_isa, valid_vec_isa_list

    x = torch.zeros(3)
    with private._few_instruction_sets([x]):
        found = pick_vec_isa()
    right = [isa for isa in valid_vec_isa_list() if not isinstance(isa, VecAMX)]
    assert right and str(found) in {str(isa) for isa in right}
    assert found.bit_width() == max(isa.bit_width() for isa in right)
    with private._few_instruction_sets([x.bfloat16()]):
        assert str(pick_vec_isa()) == str(valid_vec_isa_list()[0])


@pytest.mark.slow
@pytest.mark.skipif(not private.has_compiler(), reason="there is no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiled_step_is_that_of_svi_up_to_rounding(dtype):
    x = X.to(dtype)
    beta = schedules.Linear(4.0, 1.0, num_steps=10)
    right, parameters = [], {}
    for kind, kwargs in ((SVI, {}), (CompiledSVI, {"compiles": True})):
        with torch.random.fork_rng():
            torch.set_default_dtype(dtype)
            svi = start(kind, loss=TraceKL_ELBO(beta=beta), **kwargs)
            losses = [svi.step(x) for _ in range(20)]
        if kind is SVI:
            right, parameters = losses, leaves()
    assert "compiled in" in svi.explain()
    bound = 1e-5 if dtype is torch.float32 else 1e-12
    assert torch.allclose(torch.tensor(losses), torch.tensor(right), rtol=bound)
    for name, value in leaves().items():
        assert torch.allclose(value, parameters[name], rtol=bound, atol=bound)


@pytest.mark.parametrize("collects", [False, True])
def test_what_is_asked_of_dependencies_has_the_same_answers_where_it_is_captured(collects):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        w = pyro.sample("w", dist.Bernoulli(0.4))
        with pyro.plate("points", len(x)):
            pyro.sample("x", dist.Normal(z + w, 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", lambda: torch.zeros(4))
        slope = pyro.param("slope", torch.ones(()))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(logits=logits))
        by = z.sum(-1) - 1.0 if collects else torch.ones(())
        pyro.sample("w", dist.Bernoulli(logits=slope * by))

    svi = both(
        lambda svi: [svi.step(X) for _ in range(20)], model=lambda: model, guide=lambda: guide
    )
    assert svi.explain().startswith("19 steps")

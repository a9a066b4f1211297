"""Closed KLs by dependency: what the order does not prove, tracked values decide."""

from __future__ import annotations

import random
import threading
import warnings
from functools import partial

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from support import LOSSES, assert_mean
from torch import nn

from pyro_elbo import TraceGap_ELBO, TraceKL_ELBO
from pyro_elbo.elbo.aside import aside
from pyro_elbo.elbo.dependencies import _Family


def chain():
    a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
    c = pyro.sample("c", dist.Normal(0.5 * a, 1.0))
    pyro.sample("b", dist.Normal(a + c, 1.0))


def mean_field():
    pyro.sample("b", dist.Normal(torch.ones(()), 0.5))
    pyro.sample("c", dist.Normal(torch.ones(()), 0.7))
    pyro.sample("a", dist.Normal(-torch.ones(()), 0.4))


def reversed_pair():
    b = pyro.sample("b", dist.Normal(torch.ones(()), 0.5))
    pyro.sample("c", dist.Normal(torch.ones(()), 0.7))
    pyro.sample("a", dist.Normal(-b, 0.4))


def reversed_by_a_point():
    """The parent is a point that is computed from the child."""
    b = pyro.sample("b", dist.Normal(torch.ones(()), 0.5))
    pyro.sample("c", dist.Normal(torch.ones(()), 0.7))
    pyro.sample("a", dist.Delta(b**2))


def reversed_by_a_chain():
    b = pyro.sample("b", dist.Normal(torch.ones(()), 0.5))
    u = pyro.sample("u", dist.Normal(b, 0.1), infer={"is_auxiliary": True})
    pyro.sample("c", dist.Normal(torch.ones(()), 0.7))
    pyro.sample("a", dist.Normal(u, 0.4))


def in_a_plate():
    with pyro.plate("data", 3, subsample_size=2):
        mean_field()


def chain_in_a_plate():
    with pyro.plate("data", 3, subsample_size=2):
        chain()


def untracked(leave):
    def guide():
        b = pyro.sample("b", dist.Normal(torch.ones(()), 0.5))
        pyro.sample("c", dist.Normal(torch.ones(()), 0.7))
        pyro.sample("a", dist.Normal(leave(b), 0.4))

    return guide


def written(b):
    loc = torch.zeros(2)
    loc[0] = b
    return loc.sum()


def added(b):
    loc = torch.zeros(())
    loc.add_(b)
    return loc


def count(b):
    """A number of entries that a value stands for, in a tensor."""
    return (b.sign() + 1).long()


def written_up_to(b):
    loc = torch.zeros(3)
    loc[: count(b)] = 1.0
    return loc.sum()


LEAVES = {
    "item": lambda b: b.item(),
    "numpy": lambda b: torch.as_tensor(b.detach().numpy().copy()),
    "branch": lambda b: 1.0 if b > 1 else 0.0,
    "list": lambda b: torch.tensor(b.reshape(1).tolist()).sum(),
    "written": written,
    "added": added,
    "length": lambda b: float(len(b.reshape(1)[b.reshape(1) > 0])),
    "nonzero": lambda b: float(b.reshape(1).clamp_min(0.0).nonzero().shape[0]),
    "selected": lambda b: float(torch.ones(1).masked_select(b.reshape(1) > 0).numel()),
    "repeated": lambda b: torch.ones(1).repeat_interleave((b.reshape(1) > 0).long()).sum(),
    "unique": lambda b: float(len(torch.stack([b, torch.zeros(())]).sign().unique())),
    "end": lambda b: torch.ones(3)[: count(b)].sum(),
    "start": lambda b: torch.ones(3)[count(b) :].sum(),
    "listed": lambda b: torch.ones(3)[[slice(count(b))]].sum(),
    "last dim": lambda b: torch.ones(1, 3)[..., : count(b)].sum(),
    "step": lambda b: torch.ones(3)[:: 1 + count(b)].sum(),
    "written up to": written_up_to,
    "split": lambda b: torch.ones(3).split(1 + count(b))[0].sum(),
    "chunk": lambda b: torch.ones(3).chunk(1 + count(b))[0].sum(),
    "padded": lambda b: float(nn.functional.pad(torch.ones(3), (0, count(b))).numel()),
    "one-hot": lambda b: float(nn.functional.one_hot(count(b)).numel()),
    "dim": lambda b: float(len(torch.ones(2, 1, 3).select(count(b), 0))),
}


@pytest.mark.filterwarnings("ignore:site .* depends on it in the guide")
@pytest.mark.filterwarnings("ignore:.*copy construct:UserWarning")
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")
@pytest.mark.parametrize("name", LEAVES)
def test_a_value_that_leaves_the_tracked_tensors_proves_nothing(name):
    plan = TraceKL_ELBO().plan(chain, untracked(LEAVES[name]))
    assert (plan["a"].kl, plan["b"].kl, plan["c"].kl) == ("exact", "sampled", "sampled")


@pytest.mark.filterwarnings("ignore:site .* depends on it in the guide")
def test_a_value_is_followed_through_what_is_taken_by_truths_that_it_does_not_choose():
    def taken(b):
        truths = torch.tensor([True, False])
        both = torch.stack([b, torch.zeros(())])
        one = both[truths].sum() + both.masked_select(truths).sum() + both[torch.tensor([0])].sum()
        return one + torch.arange(3.0)[count(b)] + torch.ones(3, 2)[count(b), :1].sum()

    plan = TraceKL_ELBO().plan(chain, untracked(taken))
    assert (plan["a"].kl, plan["b"].kl, plan["c"].kl) == ("exact", "sampled", "exact")


def negative(b: torch.Tensor) -> torch.Tensor:
    return -b


def scripted(b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(negative)(b)


BELOW = {
    "scripted": scripted,
    "vmap": lambda b: torch.func.vmap(lambda t: -t)(b.reshape(1))[0],
    "grad": torch.func.grad(lambda t: -0.5 * t * t),
    "dlpack": lambda b: torch.from_dlpack(b.detach()),
    "tensor": lambda b: torch.tensor(b),
    "data": lambda b: -b.data,
}


@pytest.mark.filterwarnings("ignore:site .* depends on it in the guide")
@pytest.mark.filterwarnings("ignore:.*copy construct:UserWarning")
@pytest.mark.parametrize("name", BELOW)
def test_a_value_is_followed_below_pythons_functions(name):
    assert TraceKL_ELBO().plan(chain, untracked(BELOW[name]))["b"].kl == "sampled"

    def in_the_model():
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("c", dist.Normal(BELOW[name](a), 1.0))

    def guide():
        c = pyro.sample("c", dist.Normal(torch.ones(()), 0.7))
        pyro.sample("a", dist.Normal(-c, 0.4))

    assert TraceKL_ELBO().plan(in_the_model, guide)["c"].kl == "sampled"


CASES = {
    "mean field": (chain, mean_field, {"a": "exact", "b": "exact", "c": "exact"}),
    "in a plate": (chain_in_a_plate, in_a_plate, {"a": "exact", "b": "exact", "c": "exact"}),
    "reversed": (chain, reversed_pair, {"a": "exact", "b": "sampled", "c": "exact"}),
    "point": (chain, reversed_by_a_point, {"a": "exact", "b": "sampled", "c": "exact"}),
    "chain": (chain, reversed_by_a_chain, {"a": "exact", "b": "sampled", "c": "exact"}),
}


@pytest.mark.filterwarnings("ignore:site .* depends on it in the guide")
@pytest.mark.parametrize("vectorized", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", CASES)
def test_closed_where_no_parent_depends_on_the_site(name, vectorized):
    model, guide, how = CASES[name]
    elbo = TraceKL_ELBO(num_particles=5, vectorize_particles=vectorized)
    reference = TraceGap_ELBO(num_particles=5, vectorize_particles=vectorized)
    values = torch.tensor([elbo.loss(model, guide) for _ in range(100)])
    others = torch.tensor([reference.loss(model, guide) for _ in range(100)])
    assert_mean(values - others, torch.zeros(()), name)
    assert {site: elbo.terms.sites[site].how["kl"] for site in how} == how
    plan = elbo.plan(model, guide)
    assert all(("depends on it" in plan[site].why) == (how[site] == "sampled") for site in how)


def test_the_programs_are_run_once_more_and_the_noise_is_kept():
    runs = []

    def counted():
        runs.append(1)
        mean_field()

    elbo = TraceKL_ELBO()
    losses = []
    for _ in range(3):
        pyro.set_rng_seed(0)
        losses.append(elbo.loss(chain, counted))
    assert len(runs) == 6
    assert len(set(losses)) == 1


@pytest.mark.parametrize("cls", LOSSES, ids=lambda cls: cls.__name__)
def test_nothing_is_traced_where_the_order_proves_it(cls):
    runs = []

    def counted():
        runs.append(1)
        chain()

    cls().loss(chain, counted)
    assert len(runs) == 1


def test_a_parameter_of_the_tracked_run_is_not_captured():
    def guide():
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("b", dist.Normal(loc, 0.5))
        mean = pyro.sample("c", dist.Normal(loc, 0.7))
        pyro.sample("a", dist.Normal(0.0 * mean, 0.4))

    with poutine.trace(param_only=True) as captured, pytest.warns(UserWarning, match="'c'"):
        TraceKL_ELBO().loss_and_grads(chain, guide)
    assert list(captured.trace.nodes) == ["loc"]
    assert pyro.get_param_store()._params["loc"].grad is not None


def loops(swapped):
    """Sequential subsampled plates, whose sites are named by their indices."""

    def program():
        outer = pyro.plate("outer", 6, subsample_size=3)
        inner = pyro.plate("inner", 6, subsample_size=3)
        pairs = [(i, j) for i in outer for j in inner]
        for i, j in sorted(pairs, key=lambda pair: pair[::-1]) if swapped else pairs:
            pyro.sample(f"z_{i}_{j}", dist.Normal(torch.zeros(()), 1.0))

    return program


def test_minibatches_are_those_of_the_evaluation():
    for seed in range(4):
        pyro.set_rng_seed(seed)
        elbo = TraceKL_ELBO()
        terms = elbo.decompose(loops(False), loops(True))
        assert {site.how["kl"] for site in terms.sites.values()} == {"exact"}


class Normed(nn.Module):
    """A guide in whose order a follows b, where the model has b depend on a."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs = self.runs + 1
        loc = self.net(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Normal(loc, 0.5))
            pyro.sample("a", dist.Normal(loc, 0.4))


@pytest.mark.parametrize("particles", [1, 3])
def test_looking_for_dependencies_moves_no_buffers(particles):
    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def trained(loss):
        torch.manual_seed(0)
        guide = Normed()
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), loss)
        for start in range(3):
            svi.step(torch.arange(start, start + 5.0))
        return dict(guide.named_buffers())

    options = {"num_particles": particles, "vectorize_particles": particles > 1}
    loss = TraceKL_ELBO(**options, max_plate_nesting=1)
    found, expected = trained(loss), trained(Trace_ELBO(**options, max_plate_nesting=1))
    assert found["net.0.num_batches_tracked"] == found["runs"] == 3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.0, atol=0.0)


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x):
        return x

    def encode(self, x):
        self.runs += 1
        return x


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Counted()

    def forward(self, x):
        self.inner.runs += 1
        return self.inner(x)


class Holder:
    def __init__(self):
        self.net = Counted()

    def encode(self, x):
        return self.net.encode(x)


def by_its_part():
    net = Around()
    return net, net.inner


def by_a_method():
    net = Counted()
    return net.encode, net


def by_a_function():
    net = Counted()
    return lambda x: [net.runs.add_(1), x][1], net


def by_an_object():
    holder = Holder()
    return holder.encode, holder.net


def by_a_partial_function():
    net = Counted()
    return partial(Counted.encode, net), net


def by_a_list():
    nets = [[Counted()]]
    return lambda x: nets[0][0].encode(x), nets[0][0]


def by_a_mapping():
    holder = Holder()
    holder.nets = {"first": (holder.net,)}
    return lambda x: holder.nets["first"][0].encode(x), holder.net


NETWORK = Counted()


def by_a_global():
    NETWORK.runs = torch.zeros(1)
    return lambda x: NETWORK.encode(x), NETWORK


@pytest.mark.parametrize(
    "moved",
    [
        *(by_its_part, by_a_method, by_a_function, by_an_object, by_a_partial_function),
        *(by_a_list, by_a_mapping, by_a_global),
    ],
)
def test_buffers_that_are_moved_in_other_ways_than_by_a_call_stay_too(moved):
    encode, counted = moved()

    def guide(x):
        loc = encode(x).mean()
        pyro.sample("b", dist.Normal(loc, 0.5))
        pyro.sample("a", dist.Normal(loc, 0.4))

    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))

    elbo = TraceKL_ELBO()
    for runs in range(1, 4):
        before = counted.runs
        terms = elbo.decompose(model, guide, torch.ones(3))
        assert {site.how["kl"] for site in terms.sites.values()} == {"exact"}
        assert counted.runs is before
        assert counted.runs == runs


def test_a_module_of_another_thread_keeps_its_buffers():
    other, seen = Counted(), []
    with aside(other.encode):
        own = other.runs
        thread = threading.Thread(target=lambda: seen.append(Bystander.net(torch.ones(1))))
        thread.start()
        thread.join()
        assert Bystander.net.runs is Bystander.runs
    assert other.runs is not own
    assert len(seen) == 1


class Bystander:
    net = Counted()
    runs = net.runs


def test_looking_for_dependencies_moves_no_generator():
    def guide():
        pyro.sample("b", dist.Normal(random.random() + numpy.random.rand(), 0.5))
        pyro.sample("c", dist.Normal(torch.randn(()), 0.5))
        pyro.sample("a", dist.Normal(0.0, 0.5))

    def seeded(elbo):
        pyro.set_rng_seed(0)
        elbo.loss(chain, guide)
        return random.random(), numpy.random.rand(), torch.rand(1)

    assert seeded(TraceKL_ELBO()) == seeded(Trace_ELBO())


def test_descendants_are_found_once_for_each_site():
    size = 300
    parents = {f"z{i}": frozenset({f"z{i - 1}"} if i else ()) for i in range(size)}
    family = _Family(parents)
    assert [len(family.descendants(f"z{i}")) for i in range(size)] == [*range(size)][::-1]
    assert family.descendants("z0") is family.descendants("z0")
    loop = _Family({"a": frozenset("b"), "b": frozenset("a")})
    assert (loop.descendants("a"), loop.descendants("b")) == ({"b"}, {"a"})

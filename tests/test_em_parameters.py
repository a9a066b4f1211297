"""Which parameters are whose, and what is done about one that is both sides'."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from em_programs import Networks, X, em, guide, model, moved_by, positive, values
from pyro.infer.autoguide import AutoHierarchicalNormalMessenger, AutoNormal, AutoNormalMessenger
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import nn


class Root(PyroModule):
    """One module with both programs."""

    def __init__(self):
        super().__init__()
        self.model_side, self.guide_side = PyroModule(), PyroModule()
        self.model_side.loc = nn.Parameter(torch.zeros(()))
        self.guide_side.loc = nn.Parameter(torch.ones(()))
        self.guide_side.scale = PyroParam(torch.ones(()), positive)

    @pyro_method
    def model(self, x):
        z = pyro.sample("z", dist.Normal(self.model_side.loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        pyro.sample("z", dist.Normal(self.guide_side.loc, self.guide_side.scale))


class ModelModule(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        z = pyro.sample("z", dist.Normal(self.loc, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class GuideModule(PyroModule):
    """Its parameter has the name of the model's, which module-local parameters allow."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.ones(()))

    def forward(self, x):
        pyro.sample("z", dist.Normal(self.loc, 1.0))


def functions():
    return (model, guide), {"slope", "width"}, {"mu", "scale"}


def networks():
    both = Networks()
    sides = [{f"{name}$$${part}" for part in ("weight", "bias")} for name in ("encoder", "decoder")]
    return (both.model, both.guide), *sides


def module():
    root = Root()
    return (root.model, root.guide), {"guide_side.loc", "guide_side.scale"}, {"model_side.loc"}


def auto_normal():
    names = {f"AutoNormal.{part}.z" for part in ("locs", "scales")}
    return (model, AutoNormal(model)), names, {"mu", "scale"}


def messenger():
    return (model, AutoNormalMessenger(model)), {"locs.z", "scales.z"}, {"mu", "scale"}


def hierarchical_messenger():
    names = {"locs.z", "scales.z", "weights.z"}
    return (model, AutoHierarchicalNormalMessenger(model)), names, {"mu", "scale"}


MAKERS = [functions, networks, module, auto_normal, messenger, hierarchical_messenger]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("side", ["e", "m"])
def test_a_step_moves_its_side_and_leaves_the_other_bit_for_bit(make, side):
    """The other side's optimiser has a rate of 0, so that it moves nothing itself."""
    programs, *sides = make()
    rates = (0.01, 0.0) if side == "e" else (0.0, 0.01)
    stepper = em(rates, programs=programs, e_steps=2, m_steps=2)
    first = em(programs=programs)
    first.step(X)
    before = values()
    stepper.step(X)
    assert sides[0] | sides[1] == before.keys()
    assert moved_by(before) == sides[0 if side == "e" else 1]
    for optims in (first.optims, stepper.optims):
        for optim, names in zip(optims.values(), sides, strict=True):
            assert optim.get_state().keys() <= names
            assert len(optim.optim_objs) == len(optim.get_state())
    leaves = [pyro.param(name).unconstrained() for name in before]
    assert all(leaf.grad is None and leaf.requires_grad for leaf in leaves)


@pytest.mark.parametrize("rates", [(0.1, 0.0), (0.0, 0.1)])
def test_module_local_parameters_of_one_name_are_two(rates):
    with pyro.settings.context(module_local_params=True):
        one, other = ModelModule(), GuideModule()
        em(rates, programs=(one, other)).step(X)
        assert (float(other.loc.detach()) != 1.0) == (rates[0] > 0)
        assert (float(one.loc.detach()) != 0.0) == (rates[1] > 0)


def test_a_parameter_that_appears_later_moves_with_its_side():
    def growing(x, is_grown=False):
        mu = pyro.param("late", torch.ones(())) if is_grown else 0.0
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def simple(x, is_grown=False):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    stepper = em((0.0, 0.1), programs=(growing, simple))
    stepper.step(X)
    stepper.step(X, is_grown=True)
    assert pyro.param("late") != 1.0 and pyro.param("loc") == 0.0


def same_name(x):
    pyro.sample("z", dist.Normal(pyro.param("mu", torch.zeros(())), 1.0))


def test_a_shared_parameter_is_named_and_nothing_is_left():
    def plain(x):
        z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.zeros(())), 1.0))
        pyro.sample(
            "x", dist.Normal(z, pyro.param("scale", torch.ones(()))).expand([3]).to_event(1), obs=x
        )

    pyro.param("other", torch.ones(()))
    with pytest.raises(ValueError, match=r"both the model and the guide read parameter 'mu',"):
        em(programs=(plain, same_name)).step(X)
    assert list(values()) == ["other"]


def test_one_tensor_under_two_names_is_shared():
    both = Networks()
    both.encoder.bias = nn.Parameter(torch.zeros(2))
    both.decoder.weight = nn.Parameter(torch.ones(1, 1))
    both.encoder.tied = both.decoder.weight
    before = both.decoder.weight.detach().clone()
    with pytest.raises(ValueError, match=r"'decoder\$\$\$weight', 'encoder\$\$\$tied'"):
        em(programs=(both.model, both.guide)).step(X)
    assert torch.equal(both.decoder.weight, before) and both.decoder.weight.grad is None


@pytest.mark.parametrize("num_before", [0, 2])
def test_a_parameter_that_comes_to_be_shared_moves_no_more(num_before):
    def either(x, is_shared):
        pyro.sample(
            "z", dist.Normal(pyro.param("mu" if is_shared else "own", torch.zeros(())), 1.0)
        )

    def plain(x, is_shared):
        z = pyro.sample("z", dist.Normal(pyro.param("mu", torch.zeros(())), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    stepper = em(programs=(plain, either))
    for _ in range(num_before):
        stepper.step(X, is_shared=False)
    before = values()
    with pytest.raises(ValueError, match="'mu'"):
        stepper.step(X, is_shared=True)
    after = values()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert stepper.loss.step_count == num_before

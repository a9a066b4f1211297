"""A captured step is the step of SVI, bit for bit: losses, terms, parameters, optimisers."""

from __future__ import annotations

import warnings

import pyro
import pytest
import torch
from models import PROGRAMS
from pyro.infer import SVI
from pyro.optim import Adam

from pyro_elbo import TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO, schedules
from pyro_elbo.steppers.compiled import CompiledSVI

STEPS = 6
BRANCHING = "change point, auxiliary"  # its guide branches on a sample


def leaves():
    return {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}


def numbers(terms):
    """Everything that is recorded; sums of it may differ by the order of summation."""
    return [atom.value for site in terms.sites.values() for atom in site.atoms] + [terms.objective]


def run(svi, program, steps=STEPS):
    """The losses, terms and parameters of some steps from the start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses, terms = [], []
        for _ in range(steps):
            losses.append(svi.step(*program.args))
            terms.append(numbers(svi.loss.__self__.terms))
    return losses, terms, leaves()


def assert_same(one, other):
    assert one[0] == other[0]
    for some, others in zip(one[1], other[1], strict=True):
        assert len(some) == len(others)
        assert all(map(torch.equal, some, others))
    assert one[2].keys() == other[2].keys()
    assert all(torch.equal(value, other[2][name]) for name, value in one[2].items())


def make(kind, name, loss, particles=None, **kwargs):
    program = PROGRAMS[name]()
    beta = 1.0 if "marginalised" in name else schedules.Linear(2.0, 1.0, num_steps=4)
    elbo = loss(max_plate_nesting=program.plates, beta=beta, **(particles or {}))
    return kind(program.model, program.guide, Adam({"lr": 0.01}), elbo, **kwargs), program


def assert_captured(name, loss):
    right = run(*make(SVI, name, loss))
    svi, program = make(CompiledSVI, name, loss, compiles=False)
    assert_same(run(svi, program), right)
    if name == BRANCHING:
        assert "eager: it cannot be captured" in svi.explain()
    else:
        assert svi.explain().startswith(f"{STEPS - 1} steps of a graph"), svi.explain()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_captured_step_is_that_of_svi(name):
    assert_captured(name, TraceKL_ELBO)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [TraceGap_ELBO, TraceEntropy_ELBO], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_captured_step_of_another_loss_is_that_of_svi(name, loss):
    assert_captured(name, loss)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True], ids=["in turn", "at once"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_captured_step_of_several_particles_is_that_of_svi(name, at_once):
    """Particles that happen to draw one minibatch have other terms: such a step is eager."""
    particles = {"num_particles": 3, "vectorize_particles": at_once}
    right = run(*make(SVI, name, TraceGap_ELBO, particles))
    svi, program = make(CompiledSVI, name, TraceGap_ELBO, particles, compiles=False)
    assert_same(run(svi, program), right)
    assert svi._num_captures or name == BRANCHING

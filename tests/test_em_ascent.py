"""Whether a step that lowered the bound is told from noise."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from em_programs import X, em
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta

from pyro_elbo import TraceKL_ELBO, schedules


def quick(x):
    """Labels that are enumerated."""
    with pyro.plate("data", len(x)):
        logits = pyro.param("logits", torch.zeros(len(x), 2))
        pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def two(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)


def falls(m_rate, loss=None, programs=(two, quick), num_steps=4, anew=False, **kwargs):
    """The warnings of a few steps, at one tensor, or at another with its values each time."""
    pyro.clear_param_store()
    stepper = em((0.05, m_rate), loss, programs, **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(num_steps):
            stepper.step(X.clone() if anew else X)
    return [str(w.message) for w in caught if "lowered the objective" in str(w.message)]


def test_a_fall_without_noise_is_said_once():
    (said,) = falls(3.0)
    assert "by more than its Monte Carlo error (0)" in said
    assert falls(0.05) == []


def test_falls_are_judged_at_the_same_arguments():
    assert falls(3.0, anew=True) == []
    assert len(falls(3.0, anew=True, m_steps=2)) == 1


def sure(x):
    """Labels that are far from the prior at once, so that a weight that rises costs much."""
    with pyro.plate("data", len(x)):
        logits = pyro.param("logits", torch.tensor([3.0, -3.0]).repeat(len(x), 1))
        pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def test_falls_are_judged_at_the_same_weight():
    rising = TraceKL_ELBO(beta=schedules.Linear(0.0, 8.0, num_steps=4))
    assert falls(0.05, rising, (two, sure)) == []
    assert (
        len(falls(3.0, TraceKL_ELBO(beta=schedules.Linear(0.0, 8.0, num_steps=4)), m_steps=2)) == 1
    )


def drawn(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.zeros(())) * x, 0.5))


def full(x):
    mu = pyro.param("mu", torch.zeros(()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def minibatch(x):
    mu = pyro.param("mu", torch.zeros(()))
    with pyro.plate("data", len(x), subsample_size=2) as chosen:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[chosen])


def minibatch_guide(x):
    with pyro.plate("data", len(x), subsample_size=2) as chosen:
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.zeros(())) * x[chosen], 0.5))


@pytest.mark.parametrize("vectorize", [False, True])
def test_a_fall_is_told_from_noise_by_the_particles(vectorize):
    loss = TraceKL_ELBO(num_particles=50, vectorize_particles=vectorize, max_plate_nesting=1)
    assert falls(0.01, loss, (full, drawn), num_steps=15) == []
    assert len(falls(5.0, loss, (full, drawn))) == 1


@pytest.mark.parametrize(
    ("loss", "programs"),
    [
        (TraceKL_ELBO(), (full, drawn)),
        (TraceKL_ELBO(num_particles=50), (minibatch, minibatch_guide)),
        (Trace_ELBO(num_particles=50), (full, drawn)),
    ],
)
def test_nothing_is_said_where_the_error_is_not_known(loss, programs):
    assert falls(5.0, loss, programs) == []


def test_a_point_mass_has_no_noise():
    assert len(falls(3.0, programs=(full, AutoDelta(full)))) == 1

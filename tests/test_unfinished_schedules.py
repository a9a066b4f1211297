"""A loss that is read while its weight still moves says so, once."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from support import LOSSES

from pyro_elbo import BetaELBOMixin, schedules


class BetaTrace_ELBO(BetaELBOMixin, Trace_ELBO):
    pass


losses = pytest.mark.parametrize("cls", [*LOSSES, BetaTrace_ELBO], ids=lambda cls: cls.__name__)


def model():
    pyro.sample("z", dist.Normal(0.0, 1.0))


def guide():
    loc = pyro.param("loc", lambda: torch.tensor(1.0))
    pyro.sample("z", dist.Normal(loc, 1.0))


def trained(elbo, steps):
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1e-3}), elbo)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            svi.step()
    return svi


@losses
def test_a_schedule_that_is_unfinished_at_the_end(cls):
    svi = trained(cls(beta=schedules.Linear(4.0, 1.0, num_steps=10)), 4)
    with pytest.warns(UserWarning, match=r"beta is 2.8 at step 4, .* to step 10"):
        svi.evaluate_loss()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.evaluate_loss()


@losses
def test_the_schedule_of_a_site(cls):
    beta = {"z": schedules.Linear(0.0, 1.0, num_steps=10), "*": 2.0}
    svi = trained(cls(beta=beta), 5)
    with pytest.warns(UserWarning, match=r"beta\['z'\] is 0.5 at step 5"):
        svi.evaluate_loss()


@losses
@pytest.mark.parametrize(
    ("beta", "steps"),
    [
        (schedules.Linear(4.0, 1.0, num_steps=3), 3),
        (schedules.Linear(4.0, 1.0, num_steps=3), 0),
        (schedules.Cyclical(0.0, 1.0, period=10), 3),
        (schedules.Constant(4.0), 3),
        (lambda step: 1.0 / (1 + step), 3),
        (4.0, 3),
    ],
    ids=["ended", "not begun", "without an end", "constant", "function", "number"],
)
def test_no_false_alarm(cls, beta, steps):
    svi = trained(cls(beta=beta), steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svi.evaluate_loss()

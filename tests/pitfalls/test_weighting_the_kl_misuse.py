"""Weighting the KL: what is refused, and what a weight must not touch."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, JitTrace_ELBO, JitTraceMeanField_ELBO
from pyro.infer.reparam import LocScaleReparam
from support import assert_mean
from weighted import KL, every_loss, guide, loss_classes, losses, make, mixed, model, moving_guide


@every_loss
def test_beta_as_a_model_keyword(cls):
    """It never travels there: model and guide get what the caller gave."""
    seen = []

    def with_arguments(program):
        def inner(*args, **kwargs):
            seen.append((args, kwargs))
            program()

        return inner

    make(cls, beta=4.0).loss(with_arguments(model), with_arguments(guide), 1, flag=True)
    assert len(seen) >= 2
    assert all(arguments == ((1,), {"flag": True}) for arguments in seen)


@loss_classes
def test_one_instance_reused_on_a_model_with_more_plates(cls):
    def in_plates(program):
        def inner():
            with pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1):
                program()

        return inner

    elbo = make(cls, num_particles=2, vectorize_particles=True)
    elbo.loss(model, guide)
    values = losses(elbo, in_plates(model), in_plates(guide))
    assert_mean(values, torch.tensor(6 * KL))


@pytest.mark.parametrize("parent", [JitTrace_ELBO, JitTraceMeanField_ELBO])
def test_a_jit_loss_with_a_python_beta(parent):
    remedy = parent.__name__.removeprefix("Jit")
    with pytest.raises(TypeError, match=f"freeze beta.*{remedy} instead"):
        mixed(parent)


BAD = {"negative": -1.0, "nan": math.nan, "infinite": math.inf}
FORMS = {
    "number": lambda bad: bad,
    "site": lambda bad: {"z": bad},
    "default": lambda bad: {"*": bad},
    "schedule": lambda bad: lambda step: torch.tensor(bad),
    "site's schedule": lambda bad: {"z": lambda step: bad},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", BAD)
@every_loss
def test_negative_nan_or_infinite_beta(cls, bad, form):
    with pytest.raises(ValueError, match="finite and >= 0"):
        cls(beta=FORMS[form](BAD[bad]))


@every_loss
def test_a_beta_that_is_no_number(cls):
    with pytest.raises(TypeError, match="must be a number"):
        cls(beta="4")


@every_loss
def test_an_unknown_site_name(cls):
    """An error at the first step, which lists the latents and changes nothing."""
    program, parameters = moving_guide()
    svi = SVI(model, program, pyro.optim.Adam({"lr": 0.1}), make(cls, beta={"c": 2.0}))
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(ValueError, match="'c'.*the latents are: 'z'"):
        svi.step()
    assert all(map(torch.equal, parameters, before))


@every_loss
def test_beta_by_the_old_name_under_locscalereparam(cls):
    centred = poutine.reparam(model, config={"z": LocScaleReparam(0.0)})

    def decentred():
        pyro.sample("z_decentered", dist.Normal(torch.ones(()), 0.5))

    with pytest.raises(ValueError, match="'z_decentered' instead"):
        make(cls, beta={"z": 2.0}).loss(centred, decentred)
    values = losses(make(cls, beta={"z_decentered": 2.0}), centred, decentred)
    assert_mean(values, torch.tensor(2 * KL))

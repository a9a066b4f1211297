"""Item response: persons and items in crossed plates, some answers missing."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import constraints

from .program import Program, wave

PERSONS, ITEMS = 4, 3


def model(answers, given):
    spread = pyro.param("spread", torch.tensor(1.2), constraints.positive)
    persons = pyro.plate("persons", PERSONS, dim=-1)
    items = pyro.plate("items", ITEMS, dim=-2)
    with persons:
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with items:
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, spread))
        discrimination = pyro.sample("discrimination", dist.LogNormal(0.0, 0.5))
    with items, persons, poutine.mask(mask=given):
        logits = discrimination * (ability - difficulty)
        pyro.sample("answer", dist.Bernoulli(logits=logits), obs=answers)


def guide(answers, given):
    ability_loc = pyro.param("ability_loc", wave(PERSONS))
    ability_scale = pyro.param("ability_scale", torch.tensor(0.6), constraints.positive)
    loc = pyro.param("loc", wave(2, ITEMS, 1, scale=0.6))
    scale = pyro.param("scale", torch.tensor([0.5, 0.3]), constraints.positive)
    with pyro.plate("persons", PERSONS, dim=-1):
        pyro.sample("ability", dist.Normal(ability_loc, ability_scale))
    with pyro.plate("items", ITEMS, dim=-2):
        pyro.sample("difficulty", dist.Normal(loc[0], scale[0]))
        pyro.sample("discrimination", dist.LogNormal(loc[1], scale[1]))


def build() -> Program:
    answers = (wave(ITEMS, PERSONS) > 0).to(torch.get_default_dtype())
    given = torch.arange(ITEMS * PERSONS).reshape(ITEMS, PERSONS) % 5 != 3
    return Program(model, guide, (answers, given), plates=2)

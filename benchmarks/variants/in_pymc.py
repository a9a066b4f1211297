"""Steps of PyMC's ADVI."""

from __future__ import annotations

import pymc

from .. import pymc_twins
from ..data import arrays_of
from .stepper import Cell, Stepper

__all__ = ["advi"]

LEARNING_RATE = 1e-3


def advi(cell: Cell) -> Stepper:
    """Its step function, with Adam and the loss."""
    model = getattr(pymc_twins, cell.workload)(*arrays_of(cell))
    inference = pymc.ADVI(model=model, random_seed=0)
    adam = pymc.adam(learning_rate=LEARNING_RATE)
    step = inference.objective.step_function(obj_optimizer=adam, score=True)
    return Stepper(lambda: float(step()))

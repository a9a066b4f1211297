"""Steps of Pyro's SVI and of CompiledSVI."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor

from pyro_elbo import CompiledSVI, TraceGap_ELBO, TraceKL_ELBO
from pyro_elbo.elbo.dependencies import Program

from ..workloads import SIZED
from .stepper import Cell, Stepper

__all__ = [
    "BareKL_ELBO",
    "compiled",
    "compiled_10",
    "compiled_bare",
    "gap",
    "kl",
    "kl_bare",
    "trace",
]

LEARNING_RATE = 1e-3
FIRST_CALLS = 2


class BareKL_ELBO(TraceKL_ELBO):
    """The same objective, and no terms of it."""

    decompose = property()

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the objective."""
        return -self._objective(self._particles(Program(model, guide, args, kwargs)))


def svi_of(cell: Cell, make_svi: Any, loss: Any) -> tuple[Any, tuple[Any, ...]]:
    """An SVI at its first step, and the arguments of its steps."""
    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    workload = SIZED[cell.workload](*cell.sizes)
    many = cell.particles > 1
    particles = {"num_particles": cell.particles, "vectorize_particles": many}
    elbo = loss(max_plate_nesting=workload.max_plate_nesting, **particles)
    adam = Adam({"lr": LEARNING_RATE})
    return make_svi(workload.model, workload.make_guide(), adam, elbo), workload.arguments


def stepper(cell: Cell, loss: Any) -> Stepper:
    """Steps of SVI."""
    svi, arguments = svi_of(cell, SVI, loss)
    return Stepper(lambda: svi.step(*arguments))


def captured(cell: Cell, loss: Any, steps: int = 1) -> Stepper:
    """Steps of CompiledSVI; the first call is eager, the second compiles."""

    def make_svi(*parts: Any) -> CompiledSVI:
        return CompiledSVI(*parts, steps_per_call=steps)

    svi, arguments = svi_of(cell, make_svi, loss)

    for _ in range(FIRST_CALLS):
        svi.step(*arguments)
    if "compiled in" not in svi.explain():
        raise RuntimeError(svi.explain())
    return Stepper(lambda: svi.step(*arguments), steps)


def trace(cell: Cell) -> Stepper:
    """Pyro's own loss."""
    enumerates = SIZED[cell.workload](*cell.sizes).enumerates
    return stepper(cell, TraceEnum_ELBO if enumerates else Trace_ELBO)


def gap(cell: Cell) -> Stepper:
    """The first view, eager."""
    return stepper(cell, TraceGap_ELBO)


def kl(cell: Cell) -> Stepper:
    """The third view, eager."""
    return stepper(cell, TraceKL_ELBO)


def kl_bare(cell: Cell) -> Stepper:
    """The third view, eager, nothing recorded."""
    return stepper(cell, BareKL_ELBO)


def compiled(cell: Cell) -> Stepper:
    """The third view, compiled."""
    return captured(cell, TraceKL_ELBO)


def compiled_bare(cell: Cell) -> Stepper:
    """The third view, compiled, nothing recorded."""
    return captured(cell, BareKL_ELBO)


def compiled_10(cell: Cell) -> Stepper:
    """The third view, compiled, ten steps in each call."""
    return captured(cell, TraceKL_ELBO, 10)

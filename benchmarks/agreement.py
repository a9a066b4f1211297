"""How far a captured fit is from an eager one after some steps at the same seed."""

from __future__ import annotations

import json
import os
import sys
import warnings

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_elbo import CompiledSVI, TraceKL_ELBO

from .workloads import WORKLOADS

__all__ = ["NUM_STEPS", "differences", "fitted"]

NUM_STEPS, LEARNING_RATE = 20, 1e-3


def fitted(name: str, how: str) -> tuple[dict[str, Tensor], str]:
    """The parameters after the steps, and how they were taken."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    workload = WORKLOADS[name]()
    elbo = TraceKL_ELBO(max_plate_nesting=workload.max_plate_nesting)
    adam = Adam({"lr": LEARNING_RATE})
    parts = (workload.model, workload.make_guide(), adam, elbo)
    svi = SVI(*parts) if how == "eager" else CompiledSVI(*parts, compiles=how == "compiled")
    for _ in range(NUM_STEPS):
        svi.step(*workload.arguments)
    store = pyro.get_param_store()
    named = {key: store[key].detach().clone() for key in store}
    return named, svi.explain() if isinstance(svi, CompiledSVI) else how


def differences(name: str) -> dict[str, float | str]:
    """The largest difference of a parameter, over its largest entry, captured against eager."""
    torch.set_num_threads(1)
    eager, _ = fitted(name, "eager")
    found: dict[str, float | str] = {}
    for how in ("replayed", "compiled"):
        other, found[f"{how}_how"] = fitted(name, how)
        far = [(other[key] - value).abs().max() / value.abs().max() for key, value in eager.items()]
        found[how] = float(max(far))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(differences(sys.argv[1])), file=output, flush=True)

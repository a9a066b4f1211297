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


def fitted(name: str, how: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], str]:
    """The parameters after the steps, and how they were taken."""
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    workload = WORKLOADS[name]()
    elbo = TraceKL_ELBO(max_plate_nesting=workload.max_plate_nesting)
    adam = Adam({"lr": LEARNING_RATE})
    parts = (workload.model, workload.make_guide(), adam, elbo)
    svi = SVI(*parts) if how == "eager" else CompiledSVI(*parts, compiles=how == "compiled")
    arguments = [a.to(dtype) if a.is_floating_point() else a for a in workload.arguments]
    for _ in range(NUM_STEPS):
        svi.step(*arguments)
    store = pyro.get_param_store()
    named = {key: store[key].detach().clone() for key in store}
    return named, svi.explain() if isinstance(svi, CompiledSVI) else how


def differences(name: str) -> dict[str, float | str]:
    """The largest difference of a parameter, over its largest entry, captured against eager."""
    torch.set_num_threads(1)
    found: dict[str, float | str] = {}
    for dtype in (torch.float64, torch.float32):
        eager, _ = fitted(name, "eager", dtype)
        for how in ("replayed", "compiled"):
            other, explanation = fitted(name, how, dtype)
            far = [(other[k] - value).abs().max() / value.abs().max() for k, value in eager.items()]
            key = f"{how}_{dtype}".replace("torch.", "")
            found |= {key: float(max(far)), f"{key}_how": explanation}
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(differences(sys.argv[1])), file=output, flush=True)

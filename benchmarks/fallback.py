"""What CompiledSVI does where there is no C++ compiler, or a program cannot be captured."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor

from pyro_elbo import CompiledSVI, TraceKL_ELBO

from .workloads import WORKLOADS, Workload

__all__ = ["outcome"]

NUM_STEPS, LEARNING_RATE = 20, 1e-3


def losses(make_svi: Any, workload: Workload, model: Callable[..., Any]) -> list[float]:
    """The loss of each step."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo = TraceKL_ELBO(max_plate_nesting=workload.max_plate_nesting)
    adam = Adam({"lr": LEARNING_RATE})
    svi = make_svi(model, workload.make_guide(), adam, elbo)
    return [svi.step(*workload.arguments) for _ in range(NUM_STEPS)]


def branching(model: Callable[..., Any]) -> Callable[..., Any]:
    """The same model, with a branch on the value of a draw."""

    def branched(*arguments: Tensor) -> Any:
        if pyro.sample("coin", pyro.distributions.Uniform(0.0, 1.0), obs=torch.rand(())) > 2.0:
            raise AssertionError("a draw of a uniform is at most 1")
        return model(*arguments)

    return branched


def outcome(name: str) -> dict[str, Any]:
    """The warnings of each case, and whether its losses are those of SVI."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]()
    found: dict[str, Any] = {}
    for case, model in {
        "no compiler": workload.model,
        "no capture": branching(workload.model),
    }.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            own = losses(CompiledSVI, workload, model)
        told = [str(w.message) for w in said if "CompiledSVI" in str(w.message)]
        found[case] = {"warnings": told, "same": own == losses(SVI, workload, model)}
    return found


if __name__ == "__main__":
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(outcome(sys.argv[1])), file=output, flush=True)

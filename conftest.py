"""Every test and every docstring example starts from the same state."""

import os

os.environ["MPLBACKEND"] = "Agg"

import pyro
import pytest
import torch

SEED = 20131220

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_state():
    """An empty param store, Pyro's validation on, and a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    with pyro.validation_enabled(True):
        yield

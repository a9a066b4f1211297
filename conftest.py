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
    """An empty param store, Pyro's validation on, a fixed seed; the default dtype comes back."""
    pyro.clear_param_store()
    pyro.set_rng_seed(SEED)
    dtype = torch.get_default_dtype()
    with pyro.validation_enabled(True):
        yield
    torch.set_default_dtype(dtype)

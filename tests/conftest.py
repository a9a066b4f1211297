"""What tests have and docstring examples do not: float64, examples that repeat, no open figures."""

import pytest
import torch
from hypothesis import settings
from matplotlib import pyplot

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def float64():
    """Double precision by default, so that laws can be held to rounding error."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def closed_figures():
    """No figure is left for the next test in the process, whoever drew it."""
    yield
    pyplot.close("all")

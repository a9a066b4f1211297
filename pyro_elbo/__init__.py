r"""Losses for Pyro that show what the evidence lower bound is made of.

.. math::
    \log p(x) \ge \mathrm{ELBO}
      = \log p(x) - \mathrm{KL}(q(z) \,\|\, p(z \mid x))
      = E_q[\log p(x, z)] + H[q(z)]
      = E_q[\log p(x \mid z)] - \mathrm{KL}(q(z) \,\|\, p(z))

One loss for each view, :class:`TraceGap_ELBO`, :class:`TraceEntropy_ELBO` and
:class:`TraceKL_ELBO`, each with a KL weight :math:`\beta` that may follow a schedule.
"""

from importlib import import_module
from types import ModuleType

from . import diagnostics, evidence, reference, schedules, steppers
from .elbo import BetaELBOMixin, TraceEntropy_ELBO, TraceGap_ELBO, TraceKL_ELBO
from .errors import NonFiniteError, StopTraining, UnsupportedSiteError
from .interop import to_inference_data
from .steppers import CompiledSVI, VariationalEM
from .terms import ELBOTerms
from .training import History, fit

__version__ = "0.1.0"

__all__ = [
    "BetaELBOMixin",
    "CompiledSVI",
    "ELBOTerms",
    "History",
    "NonFiniteError",
    "StopTraining",
    "TraceEntropy_ELBO",
    "TraceGap_ELBO",
    "TraceKL_ELBO",
    "UnsupportedSiteError",
    "VariationalEM",
    "diagnostics",
    "evidence",
    "fit",
    "plots",
    "reference",
    "schedules",
    "steppers",
    "to_inference_data",
]


def __getattr__(name: str) -> ModuleType:
    if name == "plots":
        return import_module(".plots", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

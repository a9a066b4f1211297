"""Steppers: what takes one optimisation step, beside Pyro's own ``SVI``."""

from .compiled import CompiledSVI
from .em import VariationalEM
from .rules import StopRule, UntilConverged, UntilMutualInformationStopsRising

__all__ = [
    "CompiledSVI",
    "StopRule",
    "UntilConverged",
    "UntilMutualInformationStopsRising",
    "VariationalEM",
]

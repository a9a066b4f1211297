"""Steppers: what takes one optimisation step, beside Pyro's own ``SVI``."""

from .em import VariationalEM
from .rules import StopRule, UntilConverged, UntilMutualInformationStopsRising

__all__ = [
    "StopRule",
    "UntilConverged",
    "UntilMutualInformationStopsRising",
    "VariationalEM",
]
